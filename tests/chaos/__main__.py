"""Many injected runs, with a table of what was injected and what was lost: `make chaos RUNS=100`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from chaos.rehearsal import Rehearsal
from chaos.scenarios import Lost
from chaos.table import Played, replaced, table

_SHARES = {"kills": 1, "damages": 1, "full disks": 5, "concurrent starts": 5, "struck workers": 5}
"""By scenario: one of so many runs of kills."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="runs that are killed; as many are damaged")
    parser.add_argument("--only", choices=_SHARES, help="play this scenario only")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--document", type=Path, help="write the table between the markers of this file")
    options = parser.parse_args()
    seed = os.environ.get("RLOOP_CHAOS_SEED", "0")
    folder = Path(tempfile.mkdtemp(prefix="rloop-chaos-"))
    rehearsal = Rehearsal(folder, seed)
    shares = {name: share for name, share in _SHARES.items() if options.only in (None, name)}
    tasks = [(name, i) for name, share in shares.items() for i in range(max(1, options.runs // share))]
    print(
        f"chaos: {len(tasks)} runs with RLOOP_CHAOS_SEED={seed} in {folder}, {options.jobs} at the same time",
        flush=True,
    )
    rehearsal.make_references(shares)
    started = time.monotonic()

    def play(task: tuple[str, int]) -> Played:
        scenario, number = task
        try:
            result = rehearsal.play(scenario, number)
        except Lost as lost:
            print(f"\nLOST {lost}", flush=True)
            return Played(scenario, lost.result, lost=True)
        print(f"{time.monotonic() - started:6.0f} s  {scenario} {number}: {dict(result.injected)}", flush=True)
        return Played(scenario, result, lost=False)

    with ThreadPoolExecutor(options.jobs) as pool:
        played = list(pool.map(play, tasks))
    lost = sum(one.lost for one in played)
    said = f"{len(played)} runs on {date.today()}, seed {seed}: {lost} lost."
    print(f"\n{said}\n\n{table(played)}")
    if options.document is not None:
        document = options.document.read_text(encoding="utf-8")
        options.document.write_text(replaced(document, f"\n{said}\n\n{table(played)}\n"), encoding="utf-8")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
