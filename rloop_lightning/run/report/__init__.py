"""The report of a run as one HTML page, and the page that compares several runs.

    write_report(read_run(Path("runs/NAME")), Path("runs/NAME/report.html"))
    write_comparison_page(ComparedArms([ComparedRun(read_run(path), arm="dapo", seed=0), ...]), Path("comparison.html"))

A page is one file: data, styles, scripts and the library that draws its pictures (assets/report/) are inside, and its
content security policy allows no request and no other script. What a run stores is read in bounded memory: metrics.csv
and the records of evaluations (policies.py, training.py), and the pool (pool_totals.py, samples.py). A part of a run
that can't be read is told on the page.
"""
