"""The policy against a plain forward pass: one row at a time, no padding, the model's own full logits."""

import pytest
import torch
from builders import (
    RAGGED,
    fit,
    gradients,
    make_model,
    make_policy,
    random_batch,
    relative_difference,
    slow_entropies,
    slow_logprobs,
    weights,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from rloop_lightning.algorithms.rft import RFT
from rloop_lightning.data.countdown_policy import make_tokenizer
from rloop_lightning.model import head, token_scores
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy

COMPLETION_TOKENS = sum(completion for _, completion in RAGGED)


# Both ways to the logprobs compute the same model here.
BOTH_WAYS = pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
# A head that is a plain product goes by pieces of the vocabulary, any other by rows.
BOTH_HEADS = pytest.mark.parametrize("plain", [True, False], ids=["plain head", "softcap"])


def policy_of_way(packs):
    policy = make_policy()
    assert policy.packs
    policy.packs = packs
    return policy


def assert_equal_rows(actual, rows):
    """Rows of different lengths in `actual` [B, T]; 0 behind them."""
    for i, row in enumerate(rows):
        torch.testing.assert_close(actual[i, : len(row)].double(), row, rtol=1e-5, atol=1e-5)
        assert not actual[i, len(row) :].any()


def coefficients(batch):
    """A different weight for every token, so that no two mixed-up tokens cancel."""
    return torch.randn(batch.loss_mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def slow_gradient(policy, batch):
    policy.zero_grad()
    coefficient = coefficients(batch)
    rows = slow_logprobs(policy, batch)
    sum((coefficient[i, : len(row)] * row).sum() for i, row in enumerate(rows)).backward()
    return gradients(policy)


def fast_gradient(policy, batch):
    policy.zero_grad()
    (coefficients(batch) * policy.logprobs(batch).logprobs).sum().backward()
    return gradients(policy)


@BOTH_WAYS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropy_and_gradient_equal_a_plain_forward(packs, temperature):
    policy, batch = policy_of_way(packs), random_batch(temperature=temperature)
    scores = policy.logprobs(batch)
    assert_equal_rows(scores.logprobs, slow_logprobs(policy, batch))
    assert_equal_rows(scores.entropy, slow_entropies(policy, batch))
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    assert not scores.entropy.requires_grad
    assert relative_difference(fast_gradient(policy, batch), slow_gradient(policy, batch)) < 1e-5


def test_the_temperature_matters():
    policy = make_policy()
    at_1, at_07 = (policy.logprobs(random_batch(temperature=t)).logprobs for t in (1.0, 0.7))
    assert float((at_1 - at_07).detach().abs().max()) > 0.1


def policy_of_head(plain):
    return make_policy("Qwen2") if plain else make_policy("Gemma2", final_logit_softcapping=1.5, sliding_window=64)


class Logits(TorchDispatchMode):
    """How many logits each product with the head's weight gives."""

    def __init__(self, policy):
        super().__init__()
        self.head = policy.model.get_output_embeddings().weight.untyped_storage().data_ptr()
        self.counts = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            of_head = args[1].untyped_storage().data_ptr() == self.head
            if of_head and args[1].stride(0) == 1:  # transposed: else it multiplies the slopes of logits
                self.counts.append(result.numel())
        return result


def limit_logits(monkeypatch, count):
    """At most `count` logits at once: pieces of the vocabulary for a plain head, else some rows."""
    monkeypatch.setitem(token_scores.LOGITS_PER_PIECE, "cpu", count)
    monkeypatch.setattr(head, "_LOGITS_PER_CHUNK", count)


@BOTH_HEADS
def test_only_completion_positions_are_projected_and_in_chunks(monkeypatch, plain):
    policy, batch = policy_of_head(plain), random_batch()
    whole = fast_gradient(policy, batch)
    scores = policy.logprobs(batch)
    vocabulary = policy.model.config.vocab_size
    limit_logits(monkeypatch, 5 * vocabulary)
    with Logits(policy) as made:
        chunked_scores = policy.logprobs(batch)
    assert 3 * vocabulary < max(made.counts) <= 5 * vocabulary
    assert sum(made.counts) == COMPLETION_TOKENS * vocabulary == 43 * vocabulary
    with made:
        chunked_scores.logprobs.sum().backward()
    assert max(made.counts) <= 5 * vocabulary
    assert sum(made.counts) == 2 * COMPLETION_TOKENS * vocabulary  # the backward pass computed each chunk anew
    torch.testing.assert_close(chunked_scores.logprobs, scores.logprobs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chunked_scores.entropy, scores.entropy, rtol=1e-6, atol=1e-6)
    assert relative_difference(fast_gradient(policy, batch), whole) < 1e-6


@BOTH_HEADS
def test_a_chunk_is_never_empty(monkeypatch, plain):
    policy, batch = policy_of_head(plain), random_batch()
    expected = policy.logprobs(batch).logprobs
    limit_logits(monkeypatch, 1)
    with Logits(policy) as made:
        torch.testing.assert_close(policy.logprobs(batch).logprobs, expected, rtol=1e-6, atol=1e-6)
    one_row, one_column = policy.model.config.vocab_size, COMPLETION_TOKENS
    assert set(made.counts) == {one_column if plain else one_row}
    assert sum(made.counts) == one_row * one_column


@BOTH_HEADS
@BOTH_WAYS
def test_no_logits_are_kept_for_the_backward_pass(packs, plain):
    policy, batch = policy_of_head(plain), random_batch()
    policy.packs = packs
    head = policy.model.get_output_embeddings().weight.shape  # [V, H]
    vocabulary = head[0]
    kept = []
    parameters = {p.data_ptr() for p in policy.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.logprobs(batch)
    assert kept
    assert [shape for shape in kept if vocabulary in shape and shape != head] == []


@BOTH_WAYS
@pytest.mark.parametrize("max_tokens", [1, 20, 40])
def test_logprobs_do_not_depend_on_the_micro_batch(max_tokens, packs):
    policy, batch = policy_of_way(packs), random_batch()
    policy.max_tokens_per_micro_batch = max_tokens
    whole = policy.logprobs(batch)
    micro_batches = list(policy.micro_batches(batch))
    assert len(micro_batches) > 1
    for rows, micro in micro_batches:
        width = micro.loss_mask.shape[1]
        scores = policy.logprobs(micro)
        torch.testing.assert_close(scores.logprobs, whole.logprobs[rows, :width], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scores.entropy, whole.entropy[rows, :width], rtol=1e-5, atol=1e-6)


def test_rows_that_carry_no_loss_have_logprobs_too():
    policy = make_policy()
    everything = policy.logprobs(random_batch()).logprobs
    masked = policy.logprobs(random_batch(in_loss=[False] * len(RAGGED))).logprobs
    assert torch.equal(everything, masked)


def test_train_keeps_dropout_off():
    policy, batch = make_policy(attention_dropout=0.5), random_batch()
    expected = policy.logprobs(batch).logprobs
    policy.train()
    assert not any(module.training for module in policy.modules())
    assert torch.equal(policy.logprobs(batch).logprobs, expected)


def test_lightning_keeps_dropout_off():
    seen = []

    class Watch(RFT):
        def loss(self, scores, batch):
            seen.append(any(module.training for module in self.policy.model.modules()))
            return super().loss(scores, batch)

    fit(Watch(), make_policy(attention_dropout=0.5), [random_batch()])
    assert seen == [False]


def test_save_is_a_plain_hugging_face_folder_of_the_same_bits(tmp_path):
    policy = make_policy(dtype=torch.float32)
    policy.save(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    text = r"3+4=7; \boxed{3+4}"
    assert tokenizer.encode(text) == policy.encode(text)
    loaded = Policy.load(PolicyConfig(str(tmp_path / "policy"), max_tokens_per_micro_batch=77))
    assert torch.equal(loaded.logprobs(random_batch()).logprobs, policy.logprobs(random_batch()).logprobs)
    assert loaded.max_tokens_per_micro_batch == 77
    assert loaded.source == str(tmp_path / "policy")
    assert loaded.decode([[*policy.encode(text), policy.tokenizer.eos_token_id]]) == [text]


def test_load_takes_the_dtype_of_the_configuration(tmp_path):
    make_policy(dtype=torch.float32).save(tmp_path)
    assert Policy.load(PolicyConfig(str(tmp_path), dtype="bfloat16")).model.dtype == torch.bfloat16


def test_save_replaces_a_policy(tmp_path):
    make_policy(seed=1).save(tmp_path / "policy")
    policy = make_policy(seed=2)
    policy.save(tmp_path / "policy")
    other = make_policy(seed=3)
    other.load_weights(tmp_path / "policy")
    assert torch.equal(weights(other), weights(policy))


@pytest.mark.parametrize("tied", [True, False])
def test_load_weights_takes_over_every_weight_in_place(tmp_path, tied):
    saved, policy = make_policy(seed=1, tie_word_embeddings=tied), make_policy(seed=2, tie_word_embeddings=tied)
    saved.save(tmp_path / "policy")
    parameters = list(policy.parameters())
    assert not torch.equal(weights(policy), weights(saved))
    policy.load_weights(tmp_path / "policy")
    assert torch.equal(weights(policy), weights(saved))
    assert all(a is b for a, b in zip(parameters, policy.parameters(), strict=True))  # an optimizer's stay valid


def test_load_weights_refuses_another_architecture(tmp_path):
    make_policy(num_hidden_layers=1).save(tmp_path / "policy")
    policy = make_policy()
    with pytest.raises(RuntimeError, match="Missing key"):
        policy.load_weights(tmp_path / "policy")


def without_eos():
    model, tokenizer = make_model(eos_token_id=None), make_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    return model, tokenizer


def test_a_model_without_a_stop_token_is_refused():
    with pytest.raises(ValueError, match=r"neither the tokenizer nor generation_config.json names an EOS"):
        Policy(*without_eos())


def test_stop_tokens_come_from_tokenizer_and_generation_config():
    model, tokenizer = without_eos()
    model.generation_config.eos_token_id = [4, 5]
    assert Policy(model, tokenizer).stop_token_ids == {4, 5}
    model.generation_config.eos_token_id = 7
    assert Policy(model, make_tokenizer()).stop_token_ids == {7, 1}
    model.generation_config.eos_token_id = None
    assert Policy(model, make_tokenizer()).stop_token_ids == {1}


def test_a_token_budget_below_one_is_refused():
    with pytest.raises(ValueError, match=r"max_tokens_per_micro_batch: expected an integer > 0 or auto, got 0"):
        PolicyConfig(max_tokens_per_micro_batch=0)


def test_flash_attention_without_its_package_is_refused_where_it_would_be_used(tmp_path):
    folder = tmp_path / "other"
    make_policy("GPTNeoX", dtype=torch.float32).save(folder)
    with pytest.raises(ValueError, match="attn_implementation flash_attention_2: "):
        Policy.load(PolicyConfig(model=str(folder), attn_implementation="flash_attention_2"))
