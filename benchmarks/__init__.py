"""Side-by-side measurements: `make bench`, or a single part: `make bench ARGS="limit --device cuda"`.

    models.py          random models of named sizes, their tokenizers, prompts, and a reward for random text
    task.py            the task of both sides of a comparison, as flags of `rloop-fit` and as settings of TRL
    measure.py         clocks, peak memory, and sides that take turns, each in its own process
    side_*.py          a side: one program under measurement, in its own process
    step_vs_trl.py, generate_vs_hf.py, limit.py, scaling.py, reward_throughput.py      the parts
    interval_coverage.py      how often intervals cover the truth in simulated studies; a command of its own
    report.py          results.json and results.md
    __main__.py        the command

docs/performance.md explains each table.
"""
