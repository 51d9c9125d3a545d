"""The built-in policy: what ships loads and writes solutions, and the command that makes it can be run again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rloop_lightning
from rloop_lightning.data.countdown import Countdown, Family
from rloop_lightning.data.countdown_policy import CONTEXT_TOKENS, main, make_batch, make_tokenizer, solutions
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.evaluation.evaluator import EvaluationConfig, Evaluator
from rloop_lightning.model.config import PolicyConfig
from rloop_lightning.model.policy import Policy
from rloop_lightning.rewards.countdown import CountdownReward
from rloop_lightning.rollouts.sampler import GroupSampler, SamplingCost

SHIPPED = Path(rloop_lightning.__file__).parent / "assets" / "countdown-policy"


def test_shipped_folder_is_a_small_hugging_face_folder():
    names = {path.name for path in SHIPPED.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000
    assert {tensor.dtype for tensor in load_file(SHIPPED / "model.safetensors").values()} == {torch.float32}


def test_shipped_policy_loads_with_the_auto_classes():
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert model.config.model_type == "qwen2"
    assert model.config.max_position_embeddings == CONTEXT_TOKENS
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1e6
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3


def test_tokenizer_round_trip():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    texts = [problem.prompt for problem in Countdown(train_size=50).train()]
    texts += [s.text for s, _ in zip(solutions(0, Family((3, 4, 5), 12, 100)), range(50), strict=False)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text) - text.count(r"\boxed{") * (len(r"\boxed{") - 1)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_shipped_policy_leaves_room_and_gives_signal():
    """The bars that it was chosen by, on 128 problems x 32 samples of each set."""
    engine = TorchEngine(max_new_tokens=72)
    engine.bind(Policy.load(PolicyConfig()))
    sets = Countdown().evaluation()
    evaluate = Evaluator(GroupSampler(engine, CountdownReward()), sets, EvaluationConfig(), seed=0)
    measured = {**evaluate("test", SamplingCost()).metrics, **evaluate("ood", SamplingCost()).metrics}
    assert len(sets["test"]) == len(sets["ood"]) == 128
    assert 0.10 <= measured["eval/test/pass@1"] <= 0.30
    assert measured["eval/test/pass@32"] >= 0.65
    assert 0.05 <= measured["eval/ood/pass@32"] <= 0.40


def test_batches_carry_loss_on_the_completion_and_the_end_token():
    tokenizer = make_tokenizer()
    examples = [next(solutions(seed, Family((3, 4), 12, 100))) for seed in range(4)]
    input_ids, labels = make_batch(tokenizer, examples)
    for row, example in enumerate(examples):
        assert tokenizer.decode(labels[row][labels[row] >= 0]) == example.text + "<eos>"
        assert tokenizer.decode(input_ids[row], skip_special_tokens=True) == example.problem.prompt + example.text


def test_the_command_is_reproducible(tmp_path):
    options = ["--steps", "3", "--batch-size", "8"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed + 17)  # whatever ran before
        main(["--out", str(tmp_path / name), "--seed", str(seed), *options])
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert "--steps 3 --batch-size 8" in (tmp_path / "a" / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "a").decode([4]) == make_tokenizer().decode([4])


@pytest.mark.parametrize("option", [["--steps", "0"], ["--batch-size", "1"], ["--lr", "0"], ["--threads", "0"]])
def test_bad_options_end_the_command(option, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["--out", str(tmp_path / "policy"), *option])
    assert error.value.code == 2
    assert not (tmp_path / "policy").exists()
