"""The help of `rloop-report`. Importing this loads no torch."""

from __future__ import annotations

USAGE = "rloop-report RUN [RUN ...] [--out FILE.html] [--arms NAME,NAME,...]"

HELP = f"""usage: {USAGE}

Writes what a run shows as one HTML page: tables with intervals, curves, heat maps, an explorer of its rollouts, and
warnings with advice. A run writes its report.html after every phase by itself. Of several runs, the page overlays them
and shows their differences with intervals; runs that differ in --seed_everything alone are seeds of one arm.

Options:
  --out FILE.html   the page (default: RUN/report.html; of several runs, comparison.html in the current folder)
  --arms NAME,...   the arm of each run, in order (default: runs of equal settings but for the seed are one arm)
  --data PLACE      of one run: where its problems are now, for the prompts; it has to hold the same problems
  --trust           import the classes of others that the run's data settings name
  --version         show the versions of rloop-lightning, Python, torch, lightning and transformers

Examples:
  rloop-report runs/NAME
  rloop-report runs/dapo-* runs/rloop-* --out study.html
"""
