"""Weights that reach a vLLM server while it generates: order, versions, cancellation. No vLLM is needed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from streaming_vllm import FIRST_TOKEN, GeneratingServer

from rloop_lightning.engines.vllm.checks import shape_of
from rloop_lightning.engines.vllm.engine import VLLMEngine
from rloop_lightning.engines.vllm.protocol import Streamed, completions
from rloop_lightning.errors import EngineError, NonFiniteError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem

MakePolicy = Callable[..., Policy]
PROBLEMS = [Problem(id=name, prompt=name, answer="") for name in "abc"]
PUSH = ["/start_weight_update", "/update_weights", "/finish_weight_update"]


@pytest.fixture
def policy(make_policy: MakePolicy) -> Policy:
    return make_policy()


@pytest.fixture
def server(policy: Policy) -> GeneratingServer:
    return GeneratingServer(shape_of(policy))


@pytest.fixture
def engine(server: GeneratingServer, policy: Policy) -> Iterator[VLLMEngine]:
    with server.serving() as url:
        engine = VLLMEngine(url=url, max_new_tokens=40, max_gap_nats=1e9)  # its logprobs are not the policy's
        engine.bind(policy)
        engine.updates_in_flight = True
        yield engine
        engine.close()


def change(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight[0] += 1


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_every_token_has_the_version_of_the_weights_that_sampled_it(
    engine: VLLMEngine, server: GeneratingServer, policy: Policy
) -> None:
    server.least_pushes = 3
    engine.sync()
    arrived: list[int] = []
    engine.on_progress = lambda tokens, rollouts: arrived.append(tokens)
    rollouts: list = []
    thread = threading.Thread(target=lambda: rollouts.extend(engine.generate(PROBLEMS, 4, engine.sampling(0))))
    thread.start()
    for pushes in (1, 2):
        wait_for(lambda least=40 * pushes: sum(arrived) > least)
        change(policy)
        engine.sync()  # does not wait for the rollouts, which wait for it
    thread.join(30)
    assert engine.version == 3
    assert len(rollouts) == 12
    for rollout in rollouts:
        assert rollout.versions.dtype == np.int32
        assert (rollout.versions - 1).tolist() == (rollout.completion_ids - FIRST_TOKEN).tolist()
        assert (-rollout.sampling_logprobs).tolist() == rollout.versions.tolist()
    assert {int(version) for rollout in rollouts for version in rollout.versions} == {1, 2, 3}
    assert sum(arrived) == sum(rollout.length for rollout in rollouts)
    # The cache is emptied while no request runs. What is asked first need not arrive first, so probes have a priority.
    controls = [path for path in server.asked[server.asked.index("stream") :] if path.startswith("/")]
    controls = [path for path in controls if path != "/weight_info"]
    assert controls == 2 * ["/pause", *PUSH, "/reset_prefix_cache", "/resume"]
    assert server.asked.count("probe") == 2 * 3


def test_without_updates_in_flight_a_push_waits(engine: VLLMEngine, server: GeneratingServer, policy: Policy) -> None:
    engine.updates_in_flight = False
    engine.sync()
    generation = engine.begin(PROBLEMS, 2, engine.sampling(0))
    change(policy)
    engine.sync()
    assert not generation.running
    assert "stream" not in server.asked
    (rollouts,) = engine.results(generation)
    assert {int(version) for rollout in rollouts for version in rollout.versions} == {1}


def test_weights_that_another_run_pushed_are_told(engine: VLLMEngine, server: GeneratingServer, policy: Policy) -> None:
    """Also where this run's own have not changed since: a server that was started anew has a name of its own, too."""
    engine.sync()
    assert len(engine.generate(PROBLEMS, 2, engine.sampling(0))) == 6
    with server.serving() as url:
        other = VLLMEngine(url=url, max_new_tokens=40, max_gap_nats=1e9)
        other.bind(policy)
        other.sync()
        other.generate(PROBLEMS, 2, other.sampling(0))
        with pytest.raises(EngineError, match=r"--engine\.url http.*another run has pushed some"):
            engine.generate(PROBLEMS, 2, engine.sampling(1))
        other.close()
    assert len(engine.generate(PROBLEMS, 2, engine.sampling(1))) == 6  # a resume pushes its own
    assert server.pushes == 3


def test_an_update_that_a_killed_run_left_unfinished_is_begun_anew(
    engine: VLLMEngine, server: GeneratingServer
) -> None:
    server.unfinished = True
    assert len(engine.generate(PROBLEMS, 2, engine.sampling(0))) == 6
    assert (server.pushes, server.unfinished) == (1, False)


def test_the_time_of_whoever_takes_the_parts_is_not_the_servers(server: GeneratingServer, policy: Policy) -> None:
    with server.serving() as url:
        engine = VLLMEngine(url=url, max_new_tokens=40, max_rows=1, timeout_s=0.5, max_gap_nats=1e9)
        engine.bind(policy)
        parts = 0
        for part in engine.generate_parts(PROBLEMS, 2, engine.sampling(0)):
            parts += len(part) == 2
            time.sleep(0.8)  # scored by a slow judge
        engine.close()
    assert parts == 3


def test_a_cancelled_generation_raises_and_leaves_the_server(engine: VLLMEngine, server: GeneratingServer) -> None:
    server.least_pushes = math.inf
    engine.sync()
    raised: list[BaseException] = []

    def generate() -> None:
        try:
            engine.generate(PROBLEMS, 2, engine.sampling(0))
        except CancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    wait_for(lambda: server.asked.count("stream") == 6)
    engine.cancel()
    thread.join(30)
    assert raised
    wait_for(lambda: server.gone == 6)


def part(index: int, tokens: list[int], reason: str | None = None, logprob: float | None = -1.0) -> dict[str, object]:
    content = [{"logprob": logprob}] * len(tokens)
    return {
        "index": index,
        "token_ids": tokens,
        "logprobs": {"content": content},
        "finish_reason": reason,
        "routed_experts": None,
    }


def test_a_stream_is_put_together_by_completion() -> None:
    streamed = Streamed()
    assert streamed.add({"choices": [part(1, [7])]}, 3) == (1, 0)
    assert streamed.add({"choices": [part(0, [4, 5]), part(1, [8], "stop")]}, 4) == (3, 1)
    assert streamed.add({"choices": [part(0, [6], "length")]}, 4) == (1, 1)
    first, second = completions(streamed.answer())
    assert (first.tokens.tolist(), first.versions.tolist(), first.reason) == ([4, 5, 6], [4, 4, 4], "length")
    assert (second.tokens.tolist(), second.versions.tolist(), second.reason) == ([7, 8], [3, 4], "stop")


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([{"choices": [part(0, [4])]}], EngineError),  # it ends early
        ([{"error": {"message": "out of memory"}}], EngineError),
        ([{"choices": [{"index": 0}]}], EngineError),
        ([{}], EngineError),
        ([{"choices": [part(0, [4], "stop", logprob=None)]}], NonFiniteError),  # NaN, as JSON has none
    ],
)
def test_a_stream_without_what_training_needs(events: list[dict], error: type[Exception]) -> None:
    def read() -> None:
        streamed = Streamed()
        for event in events:
            streamed.add(event, 1)
        completions(streamed.answer())

    with pytest.raises(error):
        read()
