"""TorchEngine against Hugging Face's `generate`, plain forward passes, and slow implementations of its own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
import transformers
from sampled import completions, forward_logits, slow_distribution
from torch import Tensor

from rloop_lightning.batching import collate
from rloop_lightning.engines import ENGINES, decoding, rows, torch_engine
from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.row_cache import RowLayer, row_cache
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.attend import attend_single
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout

MakePolicy = Callable[..., Policy]

# Different lengths, so that prompts are padded.
PROMPTS = ["a", "xy", "b7c", "q", "rstuvw9", "3mnop", "zz", "hello", "k2", "world12"]
PROBLEMS = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(PROMPTS)]


def run(policy: Policy, problems: list[Problem] = PROBLEMS, n: int = 4, seed: int = 0, **settings) -> list[Rollout]:
    engine = TorchEngine(**{"max_new_tokens": 24, **settings})
    engine.bind(policy)
    return engine.generate(problems, n, engine.sampling(seed))


def record_tokens(policy: Policy) -> list[int]:
    """How many tokens each later forward pass computes."""
    seen: list[int] = []
    policy.model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    return seen


def chi_squared_p_value(tokens: Tensor, distribution: list[float]) -> float:
    """That counts as far from the distribution as these, or farther, come from it."""
    possible = [token for token, probability in enumerate(distribution) if probability > 0]
    assert set(tokens.tolist()) <= set(possible)
    observed = torch.bincount(tokens, minlength=len(distribution))[possible].double()
    expected = torch.tensor(distribution)[possible].double() * len(tokens)
    assert expected.min() > 5, "too few samples for the test"
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(possible) - 1) / 2, dtype=torch.float64), statistic / 2))


# --- what is generated


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3_moe", "qwen2_sliding"])
def test_greedy_equals_generate(make_policy: MakePolicy, architecture: str, attention: str) -> None:
    policy = make_policy(architecture, attn_implementation=attention)
    rollouts = run(policy, n=1, temperature=0.0)
    for rollout in rollouts:
        ids = torch.tensor(rollout.prompt_ids)[None]
        expected = policy.model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
        assert rollout.completion_ids.tolist() == expected.tolist()
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    assert len({tuple(ids) for ids in completions(rollouts)}) > 5


def test_greedy_sees_a_changed_weight(make_policy: MakePolicy) -> None:
    policy = make_policy()
    engine = TorchEngine(temperature=0.0, max_new_tokens=8)
    engine.bind(policy)
    before = completions(engine.generate(PROBLEMS, 1, engine.sampling(0)))
    with torch.no_grad():
        policy.model.model.norm.weight.neg_()
    engine.sync()
    after = completions(engine.generate(PROBLEMS, 1, engine.sampling(0)))
    assert before != after
    ids = torch.tensor(policy.encode(PROMPTS[3]))[None]
    assert after[3] == policy.model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :].tolist()


def test_any_stop_token_stops(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.stop_token_ids = frozenset({1, 5, 6})
    last = {rollout.completion_ids[-1] for rollout in run(policy, n=30, temperature=1.5) if rollout.length < 24}
    assert last == {1, 5, 6}


# --- logprobs


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_equal_a_full_forward(make_policy: MakePolicy, architecture: str, temperature: float) -> None:
    policy = make_policy(architecture)
    for rollout in run(policy, n=3, temperature=temperature):
        expected = (forward_logits(policy, rollout) / (temperature or 1.0)).log_softmax(-1)
        chosen = expected[torch.arange(rollout.length), torch.tensor(rollout.completion_ids)]
        assert rollout.sampling_logprobs == pytest.approx(chosen.numpy(), abs=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (7, 0.6), (1, 1.0), (0, 1e-6)])
def test_logprobs_are_those_of_the_restricted_distribution(make_policy: MakePolicy, top_k: int, top_p: float) -> None:
    # Smaller weights, for a distribution that is spread over several tokens.
    policy = make_policy(initializer_range=0.15)
    for rollout in run(policy, n=2, max_new_tokens=8, temperature=0.7, top_k=top_k, top_p=top_p):
        for logits, token, logprob in zip(
            forward_logits(policy, rollout), rollout.completion_ids, rollout.sampling_logprobs, strict=True
        ):
            assert logprob == pytest.approx(math.log(slow_distribution(logits, 0.7, top_k, top_p)[token]), abs=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (7, 0.6), (1, 1.0), (1000, 1.0)])
@pytest.mark.usefixtures("rows_enter")
@pytest.mark.parametrize("max_rows", [512, 7])
def test_rollouts_carry_the_tokens_that_each_was_sampled_from(
    make_policy: MakePolicy, top_k: int, top_p: float, max_rows: int
) -> None:
    """Whatever the waves, and though rows end early and are dropped; the trainer's logprobs are then the engine's."""
    policy = make_policy(initializer_range=0.25)
    settings = {"temperature": 1.3, "top_k": top_k, "top_p": top_p, "max_rows": max_rows}
    rollouts = run(policy, n=5, **settings)
    assert len({rollout.length for rollout in rollouts}) > 3 or top_k == 1
    for rollout in rollouts[::4]:
        assert rollout.kept_tokens is not None
        assert rollout.kept_counts is not None
        assert rollout.kept_tokens.dtype == rollout.kept_counts.dtype == np.int32
        kept = np.split(rollout.kept_tokens, np.cumsum(rollout.kept_counts)[:-1])
        for logits, own in zip(forward_logits(policy, rollout), kept, strict=True):
            distribution = slow_distribution(logits, 1.3, top_k, top_p)
            assert own.tolist() == [token for token, share in enumerate(distribution) if share > 0]
    batch = collate(rollouts, [0.0] * len(rollouts), temperature=1.3)
    torch.testing.assert_close(policy.scores_no_grad(batch).logprobs, batch.sampling_logprobs, rtol=0, atol=1e-4)


def test_without_truncation_rollouts_carry_no_kept_tokens(make_policy: MakePolicy) -> None:
    for settings in ({}, {"temperature": 0.0, "top_p": 0.5}):
        assert run(make_policy(), n=1, **settings)[0].kept_tokens is None
    engine = TorchEngine(max_new_tokens=4, top_p=0.5)
    engine.bind(make_policy())
    sampling = replace(engine.sampling(0), report_kept_tokens=False)
    assert engine.generate(PROBLEMS, 1, sampling)[0].kept_counts is None


def test_bfloat16_weights_give_float32_logprobs(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.model.to(torch.bfloat16)
    for rollout in run(policy, n=2):
        expected = forward_logits(policy, rollout).log_softmax(-1)
        chosen = expected[torch.arange(rollout.length), torch.tensor(rollout.completion_ids)]
        assert rollout.sampling_logprobs.dtype == np.float32
        # bfloat16 forward passes of different shapes differ; one token off would differ by nats.
        assert np.abs(rollout.sampling_logprobs - chosen.numpy()).mean() < 0.25


# --- the sampled distribution


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 6, 1.0), (1.3, 8, 0.7)]
)
def test_samples_follow_the_distribution(make_policy: MakePolicy, temperature: float, top_k: int, top_p: float) -> None:
    policy = make_policy(initializer_range=0.1)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rollouts = run(policy, PROBLEMS[:1], n=20_000, max_new_tokens=1, max_rows=20_000, **settings)
    tokens = torch.tensor([rollout.completion_ids[0] for rollout in rollouts])
    distribution = slow_distribution(forward_logits(policy, rollouts[0])[0], **settings)
    assert 1e-3 < chi_squared_p_value(tokens, distribution) < 1 - 1e-3


# --- seeds


@pytest.mark.parametrize("architecture", ["qwen2", "qwen2_sliding"])
@pytest.mark.parametrize("max_rows", [1, 3, 7, 8, 39])
@pytest.mark.parametrize("batches", [1, 4])
def test_rollouts_do_not_depend_on_max_rows(
    make_policy: MakePolicy, max_rows: int, architecture: str, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(torch_engine.BATCHES_PER_PART, "cpu", batches)
    policy = make_policy(architecture)
    together, apart = run(policy), run(policy, max_rows=max_rows)
    assert completions(together) == completions(apart)
    for a, b in zip(together, apart, strict=True):
        assert a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen2_sliding"])
def test_rollouts_do_not_depend_on_compaction(
    make_policy: MakePolicy, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(architecture)
    expected = completions(run(policy, temperature=1.5))
    for threshold in [0.0, 0.999]:
        monkeypatch.setattr(decoding, "_COMPACT_BELOW", threshold)
        assert completions(run(policy, temperature=1.5)) == expected


# --- what is computed


def test_a_prompt_is_computed_once_per_problem(make_policy: MakePolicy) -> None:
    policy = make_policy()
    seen = record_tokens(policy)
    run(policy, n=6)
    assert seen[0] == len(PROMPTS) * max(map(len, PROMPTS))
    assert all(count <= 6 * len(PROMPTS) for count in seen[1:])


@pytest.mark.parametrize(("n", "max_rows", "prefills"), [(4, 8, [2, 2, 2, 2, 2]), (4, 11, [2] * 5), (20, 8, [1] * 30)])
def test_waves_are_whole_problems_where_they_fit(
    make_policy: MakePolicy, n: int, max_rows: int, prefills: list[int]
) -> None:
    policy = make_policy()
    policy.stop_token_ids = frozenset()
    seen = record_tokens(policy)
    problems = [Problem(id=f"p{i}", prompt="abc"[: i % 2 + 2] + "de"[i % 2 :], answer="") for i in range(len(PROMPTS))]
    run(policy, problems, n=n, max_rows=max_rows, max_new_tokens=2)
    # Two tokens, so that one forward pass over the prompts, of four tokens each, and one over single tokens alternate.
    assert seen[::2] == [4 * count for count in prefills]
    assert max(seen[1::2]) <= max_rows


@pytest.mark.usefixtures("rows_enter")
@pytest.mark.parametrize(("n", "max_rows"), [(4, 8), (4, 11), (20, 7)])
def test_the_batch_is_full_while_rows_wait(make_policy: MakePolicy, n: int, max_rows: int) -> None:
    policy = make_policy()
    policy.stop_token_ids = frozenset(range(1, 5))
    seen = record_tokens(policy)
    rollouts = run(policy, PROBLEMS[:3], n=n, max_rows=max_rows, temperature=1.5)
    assert max(seen) <= max(max_rows, 3 * max(map(len, PROMPTS)))
    tokens = sum(rollout.length for rollout in rollouts)
    decoded = [count for count in seen if count <= max_rows]
    # In waves, each would last as long as its longest row.
    lengths = [rollout.length for rollout in rollouts]
    waves = sum(max(lengths[start : start + max_rows]) for start in range(0, len(lengths), max_rows))
    assert tokens / max_rows < len(decoded) < waves


@pytest.mark.usefixtures("rows_enter")
def test_a_long_prompt_enters_a_batch_of_short_ones(make_policy: MakePolicy) -> None:
    """Its columns are more than the batch has; then they leave with it."""
    policy = make_policy()
    policy.stop_token_ids = frozenset(range(1, 8))
    prompts = ["a", "b", "hello" * 8, "c", "xyz" * 2, "d" * 30, *"efghijkl"]
    problems = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(prompts)]
    expected, found = (run(policy, problems, n=2, max_rows=rows, temperature=1.2) for rows in (512, 3))
    assert completions(found) == completions(expected)
    for one in found:
        logprobs = (forward_logits(policy, one) / 1.2).log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(one.completion_ids)[:, None])[:, 0]
        assert one.sampling_logprobs == pytest.approx(chosen.numpy(), abs=1e-4)


@pytest.mark.usefixtures("rows_enter")
def test_the_cache_is_no_longer_than_the_rows_need(make_policy: MakePolicy) -> None:
    """However many rows enter one after the other."""
    policy = make_policy()
    policy.stop_token_ids = frozenset(range(1, 5))
    columns: list[int] = []
    policy.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: columns.append(kwargs["past_key_values"].get_seq_length()), with_kwargs=True
    )
    rollouts = run(policy, n=40, max_rows=100, max_new_tokens=40, temperature=1.5)
    longest = max(len(rollout.prompt_ids) + rollout.length for rollout in rollouts)
    assert len(columns) > 2 * longest
    assert max(columns) < 1.5 * longest


def test_finished_rows_leave_the_batch(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.stop_token_ids = frozenset(range(1, 5))
    seen = record_tokens(policy)
    rollouts = run(policy, n=20, temperature=1.5)
    lengths = np.array([rollout.length for rollout in rollouts])
    assert (lengths < 20).mean() > 0.3, "too few rows stop early to see anything"
    for step, count in enumerate(seen[1:], start=1):
        live = int((lengths > step).sum())
        assert live <= count <= live / 0.75 + 1
    # The batch ends with its longest row; nobody samples behind the last token.
    assert len(seen) == lengths.max()


@pytest.mark.parametrize("sharing", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decoding_attends_as_a_softmax_written_out(dtype: torch.dtype, padded: bool, sharing: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 2 * sharing, 1, 8, generator=generator, dtype=torch.float64).to(dtype)
    cache = torch.randn(2, 4, 2, 9, 8, generator=generator, dtype=torch.float64).to(dtype)
    keys, values = cache[:, :, :, :7]  # of a cache that has room left
    seen = torch.ones(4, 1, 1, 7, dtype=torch.bool)
    if padded:
        seen[1, :, :, :3] = False
    found = attend_single(queries, keys, values, seen if padded else None, 0.3)  # [R, 1, heads, D]
    expected = torch.zeros(4, 2 * sharing, 8, dtype=torch.float64)
    for row, head in np.ndindex(4, 2 * sharing):
        columns = range(3 if padded and row == 1 else 0, 7)
        key, value = (part[row, head // sharing].double() for part in (keys, values))
        scores = torch.stack([(queries[row, head, 0].double() @ key[s]) * 0.3 for s in columns])
        weights = scores.exp() / scores.exp().sum()
        expected[row, head] = sum(w * value[s] for w, s in zip(weights, columns, strict=True))
    assert found.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=0, atol=rounding)


def test_equal_prompts_need_no_mask(make_policy: MakePolicy) -> None:
    """Without a mask, attention takes its fastest kernel."""
    policy = make_policy()
    masks: list[Tensor | None] = []
    policy.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    run(policy, [PROBLEMS[0], PROBLEMS[3]], max_new_tokens=4)
    assert masks == [None] * 4
    masks.clear()
    run(policy, PROBLEMS[:2], max_new_tokens=4)
    assert len(masks) == 4
    assert all(mask is not None for mask in masks)


def test_prompts_that_are_computed_in_pieces_give_the_same(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    expected = completions(run(policy, temperature=1.5))
    seen = record_tokens(policy)
    monkeypatch.setattr(rows, "_PREFILL_TOKENS", 3 * max(map(len, PROMPTS)))
    assert completions(run(policy, temperature=1.5)) == expected
    assert [count // max(map(len, PROMPTS)) for count in seen[:4]] == [3, 3, 3, 1]


def test_a_bfloat16_engine_computes_a_float32_policy_in_bfloat16(make_policy: MakePolicy) -> None:
    policy = make_policy()
    exact = run(policy, n=8)
    rounded = run(policy, n=8, dtype="bfloat16")
    assert policy.model.dtype == torch.float32
    assert all(rollout.sampling_logprobs.dtype == np.float32 for rollout in rounded)
    first = np.array([[a.sampling_logprobs[0], b.sampling_logprobs[0]] for a, b in zip(exact, rounded, strict=True)])
    same = [a.completion_ids[0] == b.completion_ids[0] for a, b in zip(exact, rounded, strict=True)]
    gap = np.abs(first[same, 0] - first[same, 1])
    assert gap.max() > 1e-4
    assert np.median(gap) < 0.1


def test_layers_of_attention_are_row_layers(make_policy: MakePolicy) -> None:
    def layers(architecture: str) -> list[type]:
        return [type(layer) for layer in row_cache(make_policy(architecture).model.config, torch.float32).layers]

    assert layers("llama") == layers("qwen2_sliding") == [RowLayer, RowLayer]


def test_row_layer_appends_without_copying() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 5, 3, 40, 4, generator=generator)  # [B, heads, length, dim]
    layer = RowLayer(torch.float32)
    addresses = set()
    layer.update(keys[:, :, :8], values[:, :, :8])
    layer.reorder_cache(torch.tensor([0, 0, 1, 3, 4]))
    keys, values = keys[[0, 0, 1, 3, 4]], values[[0, 0, 1, 3, 4]]
    for end in range(9, 37):
        got_keys, got_values = layer.update(keys[:, :, end - 1 : end], values[:, :, end - 1 : end])
        assert torch.equal(got_keys, keys[:, :, :end])
        assert torch.equal(got_values, values[:, :, :end])
        assert layer.get_seq_length() == end
        addresses.add(got_keys.data_ptr())
    assert len(addresses) == 1
    layer.reorder_cache(torch.tensor([4, 1]))
    got_keys, _ = layer.update(keys[[4, 1], :, 36:37], values[[4, 1], :, 36:37])
    assert torch.equal(got_keys, keys[[4, 1], :, :37])


# --- errors


def test_prompts_that_do_not_fit_are_named_before_any_work(make_policy: MakePolicy) -> None:
    policy = make_policy(max_position_embeddings=30)
    seen = record_tokens(policy)
    problems = [
        Problem(id="fits", prompt="a" * 6, answer=""),
        Problem(id="too-long", prompt="a" * 7, answer=""),
        Problem(id="empty", prompt="", answer=""),
    ]
    assert len(run(policy, problems[:1], n=1)) == 1
    seen.clear()
    with pytest.raises(ValueError, match="'too-long'") as error:
        run(policy, problems)
    assert "'empty'" in str(error.value)
    assert "'fits'" not in str(error.value)
    assert seen == []


def test_constructor_gathers_all_problems() -> None:
    with pytest.raises(ValueError, match="max_new_tokens") as error:
        TorchEngine(max_new_tokens=0, temperature=-1.0, max_rows=0)
    assert str(error.value).splitlines() == [
        "--engine.max_new_tokens: expected an integer > 0 or null, got 0",
        "--engine.temperature: expected a number >= 0, got -1.0",
        "--engine.max_rows: expected an integer > 0 or auto, got 0",
    ]
    with pytest.raises(ValueError, match=r"^--engine\.max_rows: expected an integer > 0 or auto, got -2$"):
        TorchEngine(max_rows=-2)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen2_sliding", "qwen3_moe"])
def test_a_float32_engine_computes_a_bfloat16_policy_in_float32(make_policy: MakePolicy, architecture: str) -> None:
    """As a policy of the same weights in float32 does; and the policy keeps its own."""
    policy = make_policy(architecture)
    for weight in policy.parameters():
        weight.data = weight.data.bfloat16()
    exact = make_policy(architecture)
    exact.model.load_state_dict(policy.model.state_dict())
    found, expected = run(policy, dtype="float32"), run(exact)
    assert completions(found) == completions(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.sampling_logprobs, other.sampling_logprobs, rtol=0, atol=1e-4)
    assert {weight.dtype for weight in policy.parameters()} == {torch.bfloat16}


def test_auto_follows_the_precision_of_the_updates(make_policy: MakePolicy) -> None:
    policy = make_policy()
    exact, rounded = run(policy), run(policy, dtype="bfloat16")
    assert run(policy, dtype="auto")[0].sampling_logprobs.tolist() == exact[0].sampling_logprobs.tolist()
    policy.mixed_precision = torch.bfloat16
    assert run(policy, dtype="auto")[0].sampling_logprobs.tolist() == rounded[0].sampling_logprobs.tolist()
    assert run(policy, dtype="float32")[0].sampling_logprobs.tolist() == exact[0].sampling_logprobs.tolist()
    assert rounded[0].sampling_logprobs.tolist() != exact[0].sampling_logprobs.tolist()


def test_any_model_generates_in_bfloat16(make_policy: MakePolicy) -> None:
    """What the engine says of its tokens is what the float32 model says, up to rounding, and not without it."""
    policy = make_policy("qwen2_sliding")
    rollouts = run(policy, dtype="bfloat16")
    exact = policy.logprobs(collate(rollouts, [0.0] * len(rollouts))).logprobs
    gaps = np.concatenate(
        [
            np.abs(row[: rollout.length].detach().numpy() - rollout.sampling_logprobs)
            for row, rollout in zip(exact, rollouts, strict=True)
        ]
    )
    assert 1e-4 < gaps.mean() < 0.1


def test_sampling_needs_a_limit() -> None:
    with pytest.raises(RuntimeError, match="TorchEngine: max_new_tokens is not set"):
        TorchEngine().sampling(0)


def test_a_model_without_a_kv_cache_is_an_error(make_policy: MakePolicy) -> None:
    policy = make_policy()
    config = transformers.MambaConfig(vocab_size=38, hidden_size=32, num_hidden_layers=2)
    policy.model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(TypeError, match="MambaForCausalLM"):
        run(policy)


# --- the registry


def test_registered_engines_are_rollout_engines() -> None:
    for path in ENGINES.values():
        module, name = path.rsplit(".", 1)
        if path.startswith("rloop_lightning.engines.torch_engine"):
            assert issubclass(getattr(import_module(module), name), RolloutEngine)
    assert ENGINES["torch"].endswith("TorchEngine")


def test_reading_the_registry_imports_no_torch() -> None:
    code = "import sys, rloop_lightning.engines as e; assert e.ENGINES; assert 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
