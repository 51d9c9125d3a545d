"""Generation in parts, for evaluations that a resume continues: the rollouts of one request, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from architectures import make_architecture

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

MakePolicy = Callable[..., Policy]

PROBLEMS = [Problem(id=f"p{i}", prompt="abcdefgh"[: i + 1], answer="") for i in range(7)]
N = 6


def bits(rollouts: Sequence[Rollout]) -> list[tuple[str, bytes, bytes, str]]:
    return [
        (one.problem_id, one.completion_ids.tobytes(), one.sampling_logprobs.tobytes(), one.finish_reason)
        for one in rollouts
    ]


@pytest.mark.usefixtures("rows_enter")
@pytest.mark.parametrize(("max_rows", "sizes"), [(8, [3, 4]), (3, [1, 2, 2, 2]), (512, [7]), (1, [1] * 7)])
def test_parts_are_the_rollouts_of_one_request_from_any_problem_on(
    make_policy: MakePolicy, max_rows: int, sizes: list[int]
) -> None:
    engine = TorchEngine(max_new_tokens=12, max_rows=max_rows)
    engine.bind(make_policy())
    whole = bits(engine.generate(PROBLEMS, N, engine.sampling(3)))
    parts = list(engine.generate_parts(PROBLEMS, N, engine.sampling(3)))
    assert [len(part) // N for part in parts] == sizes
    assert [row for part in parts for row in bits(part)] == whole
    for done in range(len(PROBLEMS) + 1):
        rest = engine.generate_parts(PROBLEMS, N, engine.sampling(3), done)
        assert [row for part in rest for row in bits(part)] == whole[done * N :]


@pytest.mark.usefixtures("rows_enter")
def test_what_is_done_is_not_computed_again(make_policy: MakePolicy) -> None:
    policy = make_policy()
    engine = TorchEngine(max_new_tokens=2, max_rows=3)
    engine.bind(policy)
    rows: list[int] = []
    policy.model.get_input_embeddings().register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    list(engine.generate_parts(PROBLEMS, N, engine.sampling(0), done=5))
    assert max(rows) == 3
    assert len(rows) < 2 * 2 * N  # parts are of 1, 2, 2 and 2 problems; two tokens of two of them, and little more


@pytest.mark.usefixtures("rows_enter")
def test_between_parts_gradients_and_the_global_random_state_are_the_callers(make_policy: MakePolicy) -> None:
    engine = TorchEngine(max_new_tokens=4, max_rows=3)
    engine.bind(make_policy())
    state = torch.get_rng_state()
    for _ in engine.generate_parts(PROBLEMS, N, engine.sampling(0)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("rows_enter")
def test_each_part_is_computed_in_the_engines_dtype_and_the_weights_are_as_before_between_them(
    make_policy: MakePolicy,
) -> None:
    policy = make_policy()
    engine = TorchEngine(max_new_tokens=4, max_rows=3, dtype="bfloat16")
    engine.bind(policy)
    products: list[torch.dtype] = []
    policy.model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *args: products.append(args[-1].dtype))
    parts = 0
    for _ in engine.generate_parts(PROBLEMS, N, engine.sampling(0)):
        parts += 1
        assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
        assert not torch.is_autocast_enabled("cpu")
    assert parts == 4
    assert set(products) == {torch.bfloat16}


@pytest.mark.parametrize("name", ["Qwen3-Next", "LFM2", "Qwen2"])
def test_a_share_without_problems_is_empty(name: str) -> None:
    """As a rank has it that gets none of a small request."""
    engine = TorchEngine(max_new_tokens=4)
    engine.bind(make_architecture(name))
    assert engine.generate_share(PROBLEMS[:1], 2, engine.sampling(0), first=1) == []


def test_an_engine_without_parts_gives_one() -> None:
    class Fixed(RolloutEngine):
        def bind(self, policy: Policy) -> None: ...

        def sync(self) -> None: ...

        def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
            empty = torch.zeros(1).numpy()
            return [Rollout(problem.id, empty, empty, empty, str(g), "stop") for problem in problems for g in range(n)]

    parts = list(Fixed(max_new_tokens=1).generate_parts(PROBLEMS[:3], 2, SamplingParams(1), done=1))
    assert [[(one.problem_id, one.text) for one in part] for part in parts] == [
        [("p1", "0"), ("p1", "1"), ("p2", "0"), ("p2", "1")]
    ]
