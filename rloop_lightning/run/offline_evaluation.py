"""The evaluation of saved policies, one after the other, in a folder from which it goes on after a kill.

It samples what the evaluation of a run samples, with the same seeds, and writes each part of a set as soon as it is
scored (evaluation/rollout_parts.py). Complete policies are in results.json; a resume loads only the others.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import torch

from rloop_lightning.callbacks.progress import EvaluationProgress
from rloop_lightning.data.base import ProblemSource
from rloop_lightning.data.render import rendered, token_count
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.stops import stop_faults
from rloop_lightning.errors import DamagedError
from rloop_lightning.evaluation.evaluator import EvaluationConfig, Evaluator, SetEvaluation
from rloop_lightning.evaluation.record import EvaluatedPolicy, write_record
from rloop_lightning.evaluation.rollout_parts import RolloutParts
from rloop_lightning.model.adapter_folder import base_of
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.config_json import CONFIG, load_config
from rloop_lightning.model.context import context_of
from rloop_lightning.model.folder import hub_faults
from rloop_lightning.model.loading import is_folder, load_tokenizer
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.run.completion_limit import default_limit, too_long_prompts
from rloop_lightning.run.evaluation_folder import (
    EVALUATION_VERSION,
    EvaluationFolder,
    EvaluationState,
    PolicyToEvaluate,
)
from rloop_lightning.run.evaluation_results import evaluation_tables, policy_results
from rloop_lightning.run.problem_record import changed_problems, keep_record
from rloop_lightning.run.results_table import result_line
from rloop_lightning.system.checksums import damaged_files
from rloop_lightning.system.files import write_text
from rloop_lightning.system.hub import fetched_revision
from rloop_lightning.system.json_file import read_json, write_json
from rloop_lightning.system.signals import StopSignals
from rloop_lightning.types import SamplingParams

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationParts:
    """All parts of an evaluation except the policies.

    Args:
        engine: the settings of the engine.
        make_engine: makes an engine with these settings. Each policy gets its own, so that none keeps an earlier policy
            in memory.
        data: the evaluation sets, and no others.
        reward: scores completions.
        config: how policies are evaluated.
        policy: how policies are loaded; `model` is not read.
        seed: seed of all randomness.
        device: where policies compute.
        mixed_precision: dtype of matrix products, if it differs from the weights'.
    """

    engine: RolloutEngine
    make_engine: Callable[[], RolloutEngine]
    data: ProblemSource
    reward: Reward
    config: EvaluationConfig
    policy: PolicyConfig
    seed: int
    device: torch.device
    mixed_precision: torch.dtype | None


class PolicyRefused(ValueError):
    """A policy can't be evaluated: it or its problems are not those that the evaluation began with, for example."""


def fitted(one: PolicyToEvaluate, parts: EvaluationParts) -> tuple[PolicyToEvaluate, list[str]]:
    """The policy with its completion limit and its revision, and why it can't be evaluated. No weights are read.

    Args:
        one: the policy; its files are those of a model (`source_faults`).
        parts: the parts of the evaluation.
    """
    try:
        base = base_of(one.source)
        if faults := hub_faults(base):
            return one, [f"{one.name}: {fault}" for fault in faults]
        config, tokenizer = load_config(base), load_tokenizer(base)
        problems = _problems(rendered(parts.data, tokenizer).evaluation(), parts.config)
        lengths = [(problem.id, token_count(problem, tokenizer)) for found in problems.values() for problem in found]
        context = context_of(config.get_text_config())
        limit = parts.config.max_new_tokens or parts.engine.max_new_tokens or default_limit(lengths, context.tokens)
    except (ValueError, OSError) as error:
        return one, [f"{one.name}: {line}" for line in str(error).splitlines()]
    option = "--eval" if parts.config.max_new_tokens else "--engine"
    faults = [
        *stop_faults(parts.engine.stop, tokenizer),
        *too_long_prompts(lengths, context, limit, f"{option}.max_new_tokens", one.name),
    ]
    return replace(one, max_new_tokens=limit, revision=_revision(one.source)), faults


class OfflineEvaluation:
    """Evaluates the policies of an evaluation's folder that are not complete.

    Args:
        folder: the folder, which this process has claimed.
        state: what the evaluation is of.
        parts: the parts of the evaluation.
        signals: signals that stop it, at once.
    """

    def __init__(
        self, folder: EvaluationFolder, state: EvaluationState, parts: EvaluationParts, signals: StopSignals
    ) -> None:
        self.folder = folder
        self.state = state
        self.parts = parts
        self.signals = signals

    def run(self) -> str:
        """Evaluate what is left, and write the results after each policy. Returns the tables.

        Raises:
            PolicyRefused: a policy can't be loaded or generate, or it or its problems have changed.
            RunFault: logits that are not finite, or a damaged file.
            OSError: a file can't be written, or a policy can't be read.
            Stopped: a signal stopped the evaluation.
        """
        results = self._complete()
        for number, one in enumerate(self.state.policies):
            if one.name not in results:
                results[one.name] = self._evaluate(number)
            ordered = [results[other.name] for other in self.state.policies if other.name in results]
            write_json(self.folder.results, {**self._about(), "policies": ordered}, version=EVALUATION_VERSION)
            write_text(self.folder.table, self._tables(ordered))
        return self.folder.table.read_text(encoding="utf-8")

    def _complete(self) -> dict[str, Any]:
        """The results of complete policies whose records are intact, by name."""
        try:
            values, _ = read_json(self.folder.results, newest=EVALUATION_VERSION)
        except DamagedError:
            return {}
        places = {one.name: self.folder.policy(self.state.policies, n) for n, one in enumerate(self.state.policies)}
        found = {one["name"]: one for one in values["policies"] if one["name"] in places}
        records = {name: self.folder.record(places[name]) for name in found}
        return {name: one for name, one in found.items() if not damaged_files(places[name], [records[name].name])}

    def _evaluate(self, number: int) -> dict[str, Any]:
        """Evaluate a policy on every set, and write its record."""
        one = self.state.policies[number]
        place = self.folder.policy(self.state.policies, number)
        gc.collect()  # an earlier policy may be in a cycle of references
        policy, engine = self._load(one)
        shown = rendered(self.parts.data, policy.tokenizer)
        record = self.folder.problems(place)
        if changed := changed_problems(record, self.parts.data, shown, "evaluation"):
            raise PolicyRefused("\n".join(changed))
        keep_record(record, self.parts.data, shown, date.fromisoformat(self.state.began))
        notes = [f"{one.name}: {note}" for note in shown.notes() if "left out" in note]
        for note in notes:
            _log.warning(note)
        sampler = GroupSampler(engine, self.parts.reward)
        evaluator = Evaluator(sampler, shown.evaluation(), self.parts.config, self.parts.seed)
        title = f"policy {number + 1}/{len(self.state.policies)} {one.name}"
        sizes = {name: len(found) for name, found in _problems(shown.evaluation(), self.parts.config).items()}
        evaluations: dict[str, SetEvaluation] = {}
        cost = SamplingCost()
        with (
            self.signals.at_once(),
            EvaluationProgress(title, engine, sizes, self.parts.config.samples) as progress,
        ):
            for name in sizes:
                parts = RolloutParts(self.folder.rollouts(place, list(sizes), name), one.name, name)
                evaluations[name] = self._evaluate_set(evaluator, name, parts, cost)
                progress.measured(name, evaluations[name].metrics[f"eval/{name}/pass@1"])
        key = EvaluatedPolicy(one.name, one.round, one.phase, one.step)
        write_record(self.folder.record(place), key, [found.problems for found in evaluations.values()])
        metrics = {key: value for found in evaluations.values() for key, value in found.metrics.items()}
        seconds = cost.generate_s + cost.reward_s
        _log.info(f"{result_line(one.name, metrics)} ({cost.tokens:,} tokens generated, {seconds:.1f} s)")
        return {
            "name": one.name,
            "source": one.source,
            "revision": one.revision,
            "folder": place.name,
            "max_new_tokens": one.max_new_tokens,
            "notes": notes,
            "sets": {name: policy_results(name, found, self.parts.config.k) for name, found in evaluations.items()},
        }

    def _evaluate_set(self, evaluator: Evaluator, name: str, parts: RolloutParts, cost: SamplingCost) -> SetEvaluation:
        """Sample the parts of a set that are left, and measure all of them from what is on disk."""
        problems, sampling = evaluator.request(name)
        n = self.parts.config.samples
        done = parts.done(problems, n)
        if done < len(problems):
            for groups in evaluator.sampler.sample_parts(problems, n, sampling, cost, done):
                parts.write(groups, done)
                done += len(groups)
        return evaluator.measured(name, parts.groups(problems, n), sampling)

    def _load(self, one: PolicyToEvaluate) -> tuple[Policy, RolloutEngine]:
        """Load a policy onto the device, and make an engine that generates with it."""
        try:
            policy = Policy.load(replace(self.parts.policy, model=one.source))
        except ValueError as error:
            lines = [f"{one.name}: {line}" for line in str(error).splitlines()]
            raise PolicyRefused("\n".join(lines)) from error
        if (revision := _revision(one.source)) != one.revision:
            raise PolicyRefused(
                f"{one.name}: the hub now has revision {revision}, and the evaluation began with {one.revision}; start "
                "a new evaluation"
            )
        policy.mixed_precision = self.parts.mixed_precision
        policy.to(self.parts.device)
        engine = self.parts.make_engine()
        engine.max_new_tokens = one.max_new_tokens
        if wrong := engine.validate_with(policy):
            raise PolicyRefused("\n".join(line.replace("--policy.model", one.name) for line in wrong))
        engine.bind(policy)
        return policy, engine

    def _about(self) -> dict[str, Any]:
        """What all results have in common."""
        config, engine = self.parts.config, self.parts.engine
        of_engine = SamplingParams(1, temperature=engine.temperature, top_k=engine.top_k, top_p=engine.top_p)
        sampling = config.sampling(of_engine)
        return {
            "seed": self.parts.seed,
            "samples": config.samples,
            "k": list(config.k),
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }

    def _tables(self, results: Sequence[Mapping[str, Any]]) -> str:
        left = len(self.state.policies) - len(results)
        note = f"\nin progress: {len(results)} of {len(self.state.policies)} policies are complete\n" if left else ""
        told = [f"- {note}\n" for one in results for note in one.get("notes", ())]
        return evaluation_tables(results, self._about()) + "".join(["\n", *told] if told else []) + note


def _revision(source: str) -> str:
    """The commit of a policy, or of the model under an adapter, on the hub; empty for a folder."""
    base = base_of(source)
    return "" if is_folder(base) else fetched_revision(base, CONFIG)


def _problems(sets: Mapping[str, Sequence[Any]], config: EvaluationConfig) -> dict[str, Sequence[Any]]:
    """The problems of each set that are evaluated."""
    return {name: problems[: config.max_problems or None] for name, problems in sets.items()}
