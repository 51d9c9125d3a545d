"""Side-by-side measurements: `make bench`, or one part of it by `make bench ARGS="limit --device cuda"`.

    models.py          random models of named sizes, their tokenizers, prompts and a reward that random text earns
    task.py            what both sides of a comparison do, as flags of `rloop-fit` and as settings of TRL
    measure.py         clocks, peak memory, sides in processes of their own that take turns
    side_*.py          a side: one program under measurement, in its own process
    step_vs_trl.py, generate_vs_hf.py, limit.py, scaling.py, reward_throughput.py      the parts
    report.py          results.json and results.md
    __main__.py        the command

docs/performance.md says what each table means.
"""
