"""Stop strings and stop tokens, against a slow search in the decoded text after every token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from builders import make_model
from tokenizers_of_each_kind import KINDS

from rloop_lightning.batching import collate
from rloop_lightning.engines.stops import Stops
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.evaluation.evaluator import EvaluationConfig, Evaluator
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.base import Reward
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost
from rloop_lightning.types import Problem, Rollout

PROBLEMS = [Problem(f"p{i}", prompt, "") for i, prompt in enumerate(["The answer", "7", "so it is then", "café"])]
NEW_TOKENS = 40


@lru_cache(maxsize=1)
def policy_of(kind: str) -> Policy:
    """Nearly uniform distributions, so that texts are of many tokens."""
    tokenizer = KINDS[kind]()
    model = make_model(vocab_size=len(tokenizer), initializer_range=0.05, dtype=torch.float32)
    return Policy(model, tokenizer)


def sample(policy: Policy, *, n: int = 8, seed: int = 0, max_new_tokens: int = NEW_TOKENS, **settings) -> list[Rollout]:
    engine = TorchEngine(max_new_tokens=max_new_tokens, **settings)
    assert engine.validate_with(policy) == []
    engine.bind(policy)
    return engine.generate(PROBLEMS, n, engine.sampling(seed))


def slow_end(policy: Policy, rollout: Rollout, stops: list[str]) -> tuple[int, str]:
    """Length and finish reason with stop strings."""
    for length in range(1, rollout.length + 1):
        (text,) = policy.decode([rollout.completion_ids[:length].tolist()])
        if any(stop in text for stop in stops):
            return length, "stop"
    return rollout.length, rollout.finish_reason


def pieces_of(texts: list[str], rng: random.Random, count: int = 6) -> list[str]:
    """Random parts of the texts, most of them across token borders."""
    found = []
    while len(found) < count:
        text = rng.choice([text for text in texts if text])
        start, length = rng.randrange(len(text)), rng.randint(1, 6)
        if piece := text[start : start + length].replace("\ufffd", ""):
            found.append(piece)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(kind: str, seed: int) -> None:
    policy = policy_of(kind)
    whole = sample(policy)
    stops = pieces_of([rollout.text for rollout in whole], random.Random(seed))
    stopped = sample(policy, stop=stops)
    ends = [slow_end(policy, rollout, stops) for rollout in whole]
    assert [(rollout.length, rollout.finish_reason) for rollout in stopped] == ends
    assert any(length < rollout.length for (length, _), rollout in zip(ends, whole, strict=True))
    for rollout, full in zip(stopped, whole, strict=True):
        assert rollout.completion_ids.tolist() == full.completion_ids[: rollout.length].tolist()
        assert rollout.text == policy.decode([rollout.completion_ids.tolist()])[0]


def text_up_to_the_end(policy: Policy, tokens: list[int], stop: str) -> str:
    """What is kept of a completion of these tokens."""
    stops, row, live = Stops(policy, (stop,)), torch.tensor([0]), torch.tensor([True])
    completions = torch.tensor([tokens])
    lengths = (step + 1 for step in range(len(tokens)) if stops.ended(completions, row, torch.tensor([step]), live)[0])
    return policy.decode([tokens[: next(lengths, None)]])[0]


def test_a_character_of_several_tokens_completes_a_stop_string() -> None:
    """No token of it decodes to a part of the stop."""
    policy = policy_of("byte-level")
    ids = policy.encode("語")
    assert len(ids) > 1
    assert text_up_to_the_end(policy, [*policy.encode("so"), *ids, *policy.encode("the")], "語") == "so語"


def test_a_stop_far_longer_than_a_token_is_found() -> None:
    policy = policy_of("byte-level")
    stop = "xyzw" * 30
    kept = f"so {stop[:50]} {stop}"
    assert text_up_to_the_end(policy, policy.encode(f"{kept} the"), stop) == kept


def test_tokens_without_text_inside_a_stop_do_not_hide_it() -> None:
    policy = policy_of("byte-level")
    turn = policy.tokenizer.convert_tokens_to_ids("<|turn|>")
    tokens = [*policy.encode("so q"), *[turn] * 60, *policy.encode("zthe")]
    assert text_up_to_the_end(policy, tokens, "qz") == "so qz"


@pytest.mark.usefixtures("rows_enter")
@pytest.mark.parametrize("kind", KINDS)
def test_stops_do_not_depend_on_the_batch(kind: str) -> None:
    policy = policy_of(kind)
    whole = sample(policy)
    spared = next(rollout.text for rollout in whole if rollout.finish_reason == "length")
    pieces = pieces_of([rollout.text for rollout in whole], random.Random(9), count=20)
    stops = [piece for piece in pieces if piece not in spared]
    together = sample(policy, stop=stops)
    assert {rollout.finish_reason for rollout in together} == {"stop", "length"}
    for max_rows in (1, 3, 8, 17):
        apart = sample(policy, stop=stops, max_rows=max_rows)
        assert [r.completion_ids.tolist() for r in apart] == [r.completion_ids.tolist() for r in together]
        assert [r.finish_reason for r in apart] == [r.finish_reason for r in together]


def test_a_stop_that_is_completed_at_the_limit_is_a_stop() -> None:
    policy = policy_of("byte-level")
    whole, stopped = (sample(policy, n=60, max_new_tokens=3, stop=stop) for stop in ([], ["e"]))
    ends = [slow_end(policy, rollout, ["e"]) for rollout in whole]
    at_limit = [i for i, end in enumerate(ends) if end == (3, "stop") and whole[i].finish_reason == "length"]
    assert at_limit
    assert {stopped[i].finish_reason for i in at_limit} == {"stop"}


def test_the_trainer_scores_stopped_completions_as_the_engine_does() -> None:
    policy = policy_of("byte-level")
    rollouts = sample(policy, stop=["e", "is"])
    assert sum(rollout.finish_reason == "stop" for rollout in rollouts) > 10
    with torch.no_grad():
        scores = policy.logprobs(collate(rollouts, [0.0] * len(rollouts)))
    for row, rollout in zip(scores.logprobs, rollouts, strict=True):
        np.testing.assert_allclose(row[: rollout.length], rollout.sampling_logprobs, rtol=0, atol=1e-4)


def test_the_name_of_a_special_token_stands_for_the_token() -> None:
    policy = policy_of("byte-level")
    turn = policy.tokenizer.convert_tokens_to_ids("<|turn|>")
    whole, stopped = sample(policy, n=60), sample(policy, n=60, stop=["<|turn|>"])
    with_turn = [rollout for rollout in whole if turn in rollout.completion_ids]
    assert with_turn
    for before, after in zip(whole, stopped, strict=True):
        ends = (before.completion_ids == turn).nonzero()[0]
        assert after.length == (ends[0] + 1 if len(ends) else before.length)
        assert "<|turn|>" not in after.text


def test_stops_that_can_end_nothing_are_refused() -> None:
    for wrong in (["a", ""], "ab", [3]):
        with pytest.raises(ValueError, match=r"--engine.stop: expected a list of texts, none of them empty, got "):
            TorchEngine(stop=wrong)
    (fault,) = TorchEngine(stop=["a", "a<|turn|>"]).validate_with(policy_of("byte-level"))
    assert fault.startswith("--engine.stop 'a<|turn|>': <|turn|> is a special token, and a completion's text has none")


class Texts(Reward):
    """Keeps what it is asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def rewards(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        self.texts += texts
        return [0.0] * len(texts)


def test_an_evaluation_has_the_same_stops() -> None:
    policy, reward = policy_of("byte-level"), Texts()
    engine = TorchEngine(max_new_tokens=NEW_TOKENS, stop=["e"])
    engine.bind(policy)
    evaluator = Evaluator(GroupSampler(engine, reward), {"test": PROBLEMS}, EvaluationConfig(samples=8, k=(1,)), 0)
    evaluator("test", SamplingCost())
    tails = [text.partition("e")[2] for text in reward.texts if "e" in text]
    assert len(tails) > 10
    assert all(len(tail) < 12 for tail in tails)  # the rest of a token


def test_without_stop_strings_no_token_is_decoded_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("byte-level")
    calls: list[int] = []
    decode = policy.decode
    monkeypatch.setattr(policy, "decode", lambda completions: calls.append(len(completions)) or decode(completions))
    sample(policy, n=2)
    assert calls == [8]


def test_few_tokens_are_decoded_to_look_for_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rows whose new token may complete a stop are looked at: of one that ends in `?`, one row in dozens."""
    policy = policy_of("byte-level")
    calls: list[int] = []
    decode = policy.decode
    monkeypatch.setattr(policy, "decode", lambda completions: calls.append(len(completions)) or decode(completions))
    rollouts = sample(policy, n=8, stop=["zq?"])
    of_vocabulary, looked = calls[:2], calls[2:-1]
    assert len(of_vocabulary) == 2
    assert sum(looked) < 0.05 * sum(rollout.length for rollout in rollouts)
