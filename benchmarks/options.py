"""The options of `python -m benchmarks`, checked before anything is measured."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.models import SIZES

PARTS = (
    "step_vs_trl",
    "same_learning",
    "generate_vs_hf",
    "continuous_batching",
    "limit",
    "scaling",
    "reward_throughput",
)
COMPARISONS = ("step_vs_checkout", "vllm_engine")  # which need another side that only the user knows
MECHANICS = ("real",)  # made for a GPU
STUDIES = ("learning", "precision", "minirl_on_experts")
_RESPONSES = Path(os.environ.get("RLOOP_SHARED", ROOT.parent / "shared")) / "data" / "gsm8k_responses.jsonl"


@dataclass(frozen=True)
class Options:
    """The parts to measure, and their sizes.

    Args:
        parts: names of the parts, in order.
        device: "cpu" or "cuda".
        toy: only check that everything runs, at the smallest sizes.
        rounds: turns per side.
        sizes: models by name; empty takes each part's default sizes for the device.
        learn_steps: rollout steps of `same_learning`.
        study_steps: rollout steps of each run of a study.
        seeds: runs per variant of a study.
        keep: folder that keeps the runs of studies, so that complete runs are reused; None keeps nothing.
        filter_rollouts: size of the largest filtered pool, rollouts.
        against: another checkout of this project, for step_vs_checkout and continuous_batching.
        vllm_python: interpreter of an environment with vLLM; empty skips vLLM.
        responses: file of answers for `reward_throughput`; without the file, the part measures nothing.
        out: folder for results.json and results.md.
    """

    parts: tuple[str, ...]
    device: str
    toy: bool
    rounds: int
    sizes: tuple[str, ...]
    learn_steps: int
    study_steps: int
    seeds: int
    keep: Path | None
    filter_rollouts: int
    against: Path | None
    vllm_python: str
    responses: Path
    out: Path

    def sizes_or(self, cpu: Sequence[str], cuda: Sequence[str]) -> Sequence[str]:
        """The requested sizes, else the part's defaults."""
        if self.sizes:
            return self.sizes
        return ("toy",) if self.toy else cuda if self.device == "cuda" else cpu


def parse(argv: Sequence[str] | None) -> Options:
    """Parse the command line. Errors end the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures this machine; writes results.md and results.json."
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"parts to run: {', '.join(PARTS)} (default: all of these); against another checkout, and vLLM: "
        f"{', '.join(COMPARISONS)}; at the shapes of real models: {', '.join(MECHANICS)}; "
        f"studies: {', '.join(STUDIES)}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns per side (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=[], metavar="SIZE", help=f"model sizes: {', '.join(SIZES)}")
    parser.add_argument(
        "--learn-steps", type=int, default=40, help="rollout steps of same_learning (default: %(default)s)"
    )
    parser.add_argument(
        "--study-steps", type=int, default=100, help="rollout steps of each run of a study (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per variant of a study (default: %(default)s)")
    parser.add_argument(
        "--keep", type=Path, default=None, help="folder that keeps the runs of studies; complete runs are reused"
    )
    parser.add_argument(
        "--against", type=Path, default=None, help="another checkout, for step_vs_checkout and continuous_batching"
    )
    parser.add_argument(
        "--filter-rollouts",
        type=int,
        default=10_000_000,
        help="size of the largest filtered pool (default: %(default)s)",
    )
    parser.add_argument(
        "--vllm-python", default=os.environ.get("VLLM_PYTHON", ""), help="interpreter of an environment with vLLM"
    )
    parser.add_argument(
        "--responses", type=Path, default=_RESPONSES, help="file of GSM8K responses (docs/performance.md)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for the results (default: benchmarks)")
    parser.add_argument("--toy", action="store_true", help="only check that everything runs; needs --out")
    given = parser.parse_args(argv)
    parts = given.parts or list(PARTS)
    known = (*PARTS, *COMPARISONS, *MECHANICS, *STUDIES)
    wrong = [f"no part {name!r}; parts are {', '.join(known)}" for name in parts if name not in known]
    wrong += [f"--sizes: no size {name!r}; sizes are {', '.join(SIZES)}" for name in given.sizes if name not in SIZES]
    for flag in ("rounds", "learn_steps", "study_steps", "seeds", "filter_rollouts"):
        if getattr(given, flag) < 1:
            wrong.append(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(given, flag)}")
    if "step_vs_checkout" in parts and not (given.against and (given.against / "benchmarks").is_dir()):
        wrong.append("step_vs_checkout needs --against: the folder of another checkout of this project")
    if given.toy and given.out is None:
        wrong.append("--toy needs --out: its figures must not mix with real ones")
    if given.vllm_python and not Path(given.vllm_python).is_file():
        wrong.append(f"--vllm-python {given.vllm_python}: no such file; give the interpreter of vLLM's environment")
    if "vllm_engine" in parts and not given.vllm_python:
        wrong.append("vllm_engine needs --vllm-python: the interpreter of vLLM's environment")
    if {"step_vs_trl", "same_learning"} & set(parts) and find_spec("trl") is None:
        wrong.append("step_vs_trl and same_learning need TRL: pip install -c constraints.txt -e '.[bench]'")
    if given.device == "cuda" and not _has_gpu():
        wrong.append("--device cuda: torch finds no GPU here; leave the option out, or install torch with CUDA")
    if wrong:
        parser.error("\n  ".join(wrong))
    return Options(
        parts=tuple(parts),
        device=given.device,
        toy=given.toy,
        rounds=1 if given.toy else given.rounds,
        sizes=tuple(given.sizes),
        learn_steps=2 if given.toy else given.learn_steps,
        study_steps=2 if given.toy else given.study_steps,
        seeds=1 if given.toy else given.seeds,
        keep=given.keep.resolve() if given.keep else None,
        filter_rollouts=2000 if given.toy else given.filter_rollouts,
        against=given.against.resolve() if given.against else None,
        vllm_python=given.vllm_python,
        responses=given.responses,
        out=given.out or ROOT / "benchmarks",
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
