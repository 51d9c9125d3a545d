"""How often 95 % intervals cover the truth in simulated studies: `python -m benchmarks.interval_coverage`.

A study draws problems and runs, then n rollouts of each problem in each run. The logit of the success probability is

    logit p_sq = mean + seed_s + problem_q + own_sq

with normal terms, so the true pass@k over all seeds and problems is an integral over one normal variable. Two arms
share the problem term and half the variance of the seed term. `--document FILE` writes the table between the
marks in FILE; docs/statistics.md is such a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Table
from rloop_lightning.evaluation.pass_at_k import pass_at_k
from rloop_lightning.evaluation.resampling import (
    bca_bounds,
    bootstrap_means,
    crossed_half_width,
    hierarchical_means,
    seed_means,
)
from rloop_lightning.seeds import derive_seed
from rloop_lightning.system.files import atomic_path

SAMPLES = 16
RESAMPLES = 1_000
LEVEL = 0.95
WANTED = (0.93, 0.97)
MARKS = ("<!-- coverage: made by benchmarks.interval_coverage -->", "<!-- end of coverage -->")

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Scenario:
    """Where studies are drawn from. Spreads are standard deviations of the terms of the logit."""

    name: str
    sets: tuple[tuple[int, float], ...] = ((100, 0.0),)  # problems of each, and how far the mean is shifted
    mean: float = -1.0
    of_seeds: float = 0.3
    of_problems: float = 1.5
    own: float = 0.5
    effect: float = 0.3  # second arm's mean minus first arm's
    problem_effect: float = 0.45  # spread of the effect over problems

    @property
    def sizes(self) -> list[int]:
        """The number of problems of each set."""
        return [size for size, _ in self.sets]

    def truth(self, k: int, arm: int) -> float:
        """pass@k over all seeds and problems, on average over the sets."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(101)
        variance = self.of_seeds**2 + self.of_problems**2 + self.own**2 + arm * self.problem_effect**2
        shifts = np.array([[shift] for _, shift in self.sets])
        p = _sigmoid(self.mean + shifts + arm * self.effect + variance**0.5 * nodes)
        return float(((1 - (1 - p) ** k) @ weights / weights.sum()).mean())

    def study(self, seeds: int, k: int, rng: np.random.Generator, *, paired: bool = True) -> list[np.ndarray]:
        """pass@k of two arms on the same problems, each [S, P]; with `paired`, of the same seeds too."""
        problems = sum(self.sizes)
        shifts = np.repeat([shift for _, shift in self.sets], self.sizes)
        problem = self.mean + shifts + self.of_problems * rng.standard_normal((1, problems))
        shared = rng.standard_normal((seeds, 1)) / 2**0.5
        arms = []
        for arm in (0, 1):
            effect = arm * (self.effect + self.problem_effect * rng.standard_normal((1, problems)))
            own_seed = rng.standard_normal((seeds, 1))
            seed = shared + own_seed / 2**0.5 if paired else own_seed
            own = rng.standard_normal((seeds, problems))
            p = _sigmoid(problem + effect + self.of_seeds * seed + self.own * own)
            successes = torch.from_numpy(rng.binomial(SAMPLES, p))
            arms.append(pass_at_k(successes, SAMPLES, k).numpy())
        return arms


SCENARIOS = (
    Scenario("typical"),
    Scenario("seeds alike", of_seeds=0.05),
    Scenario("300 problems", sets=((300, 0.0),)),
    Scenario("hard problems", mean=-3.5),
    Scenario("average of sets", sets=((100, 1.0), (30, -1.5))),
)


def crossed_t(arms: Sequence[np.ndarray], sets: Sequence[int], rng: np.random.Generator) -> Bounds:
    estimate, half = sum(seed_means(arm, sets).mean() for arm in arms), crossed_half_width(arms, LEVEL, sets)
    return estimate - half, estimate + half


def hierarchical(arms: Sequence[np.ndarray], sets: Sequence[int], rng: np.random.Generator) -> Bounds:
    return _percentiles(hierarchical_means(arms, RESAMPLES, rng, sets))


def seeds_alone(arms: Sequence[np.ndarray], sets: Sequence[int], rng: np.random.Generator) -> Bounds:
    """The naive method: percentile bootstrap of the seeds' figures."""
    return _percentiles(bootstrap_means(seed_means(arms[0], sets), RESAMPLES, rng))


def problems_alone(arms: Sequence[np.ndarray], sets: Sequence[int], rng: np.random.Generator) -> Bounds:
    """BCa bootstrap over problems, of the mean over seeds."""
    values = arms[0].mean(axis=0)
    return bca_bounds(values, bootstrap_means(values, RESAMPLES, rng, sets), LEVEL, sets)


Method = Callable[[Sequence[np.ndarray], Sequence[int], np.random.Generator], Bounds]
COLUMNS: tuple[tuple[str, str, Method], ...] = (
    ("one arm: t", "one", crossed_t),
    ("one arm: hierarchical", "one", hierarchical),
    ("paired: t", "paired", crossed_t),
    ("paired: hierarchical", "paired", hierarchical),
    ("unpaired: t", "unpaired", crossed_t),
    ("paired: seeds alone", "paired", seeds_alone),
    ("paired: problems alone", "paired", problems_alone),
)


def coverage(
    scenario: Scenario, seeds: int, k: int, studies: int, columns: Sequence[tuple[str, str, Method]] = COLUMNS
) -> dict[str, float]:
    """The share of studies in which each column's interval holds the truth."""
    key = (scenario.name, sum(scenario.sizes), seeds, k)
    rng, draws = (np.random.default_rng(derive_seed(*key, purpose)) for purpose in ("studies", "bootstrap"))
    truths = [scenario.truth(k, arm) for arm in (0, 1)]
    covered = dict.fromkeys((name for name, _, _ in columns), 0)
    for _ in range(studies):
        first, second = scenario.study(seeds, k, rng)
        other_first, other_second = scenario.study(seeds, k, rng, paired=False)
        cases = {
            "one": ([first], truths[0]),
            "paired": ([second - first], truths[1] - truths[0]),
            "unpaired": ([other_second, -other_first], truths[1] - truths[0]),
        }
        for name, case, method in columns:
            low, high = method(cases[case][0], scenario.sizes, draws)
            covered[name] += low <= cases[case][1] <= high
    return {name: count / studies for name, count in covered.items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _percentiles(means: np.ndarray) -> Bounds:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _rows(studies: int, counts: Sequence[int], scenarios: Sequence[Scenario]) -> Iterator[list[str]]:
    for scenario in scenarios:
        for k in (1, 8):
            for seeds in counts:
                shares = coverage(scenario, seeds, k, studies)
                print(scenario.name, k, seeds, *map(_cell, shares.values()), file=sys.stderr, flush=True)
                yield [scenario.name, f"pass@{k}", str(seeds), *map(_cell, shares.values())]


def _one_run_rows(studies: int, scenarios: Sequence[Scenario]) -> Iterator[list[str]]:
    """One run: the truth is over problems alone, so no seed differs from another."""
    column = (("one run", "one", problems_alone),)
    for scenario in scenarios:
        for problems in (30, 100, 300):
            one = replace(scenario, of_seeds=0.0, sets=((problems, 0.0),))
            shares = [coverage(one, 1, k, studies, column)["one run"] for k in (1, 8)]
            yield [scenario.name, str(problems), *map(_cell, shares)]


def _cell(share: float) -> str:
    """The share in percent, in bold where it is not as wanted."""
    return f"{share:.1%}" if WANTED[0] <= share <= WANTED[1] else f"**{share:.1%}**"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000, help="simulated studies for each row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10, 30], help="numbers of seeds")
    parser.add_argument("--document", type=Path, help="file to write the table into; the default prints it")
    options = parser.parse_args(argv)
    several = Table(
        f"Several seeds, {options.studies:,} studies a row",
        ["studies", "metric", "seeds", *(name for name, _, _ in COLUMNS)],
        list(_rows(options.studies, options.seeds, SCENARIOS)),
    )
    one = Table(
        f"One run, {options.studies:,} studies a row",
        ["studies", "problems", "pass@1", "pass@8"],
        list(_one_run_rows(options.studies, [one for one in SCENARIOS if one.name in ("typical", "hard problems")])),
    )
    text = f"{several.markdown()}\n\n{one.markdown()}"
    if options.document is None:
        print(text)
        return
    before, rest = options.document.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    with atomic_path(options.document) as partial:
        partial.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
