"""`python -m benchmarks [PART ...]`: runs the parts, and writes results.json and results.md after each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module

from benchmarks.options import parse
from benchmarks.report import save


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    for part in options.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        started = time.perf_counter()
        result = import_module(f"benchmarks.{part}").run(options)
        save(options.out, part, options.device, result)
        print("\n\n".join(table.markdown() for table in result.tables) + "\n", flush=True)
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(f"results are in {options.out / 'results.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
