"""Rollouts from vLLM: a server process of the trainer's own, or servers that run already.

    engine = VLLMEngine(python="/path/to/vllm/bin/python", max_new_tokens=64)
    engine.bind(policy)
    rollouts = engine.generate(problems, n=8, sampling=engine.sampling(seed=0))

Both are the same server with the same requests. The process is started once the lengths of rollouts are known. `sync`
pushes the policy's weights if they have changed, counts a version, and compares logprobs (truth.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from typing import Literal

import torch

from rloop_lightning.engines.base import RolloutEngine
from rloop_lightning.engines.vllm import truth
from rloop_lightning.engines.vllm.checks import python_faults, same_model, url_faults
from rloop_lightning.engines.vllm.client import LoopThread, Server
from rloop_lightning.engines.vllm.connection import Connection, Limits, connected, started
from rloop_lightning.engines.vllm.generation import Generation, Job
from rloop_lightning.engines.vllm.settings import (
    ProcessSettings,
    addresses,
    interpreter,
    place_faults,
    sleep_faults,
    temperature_faults,
)
from rloop_lightning.engines.vllm.weights import fingerprint
from rloop_lightning.errors import EngineError
from rloop_lightning.model.on_ranks import on_ranks
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.fields import (
    LeftOpenUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from rloop_lightning.types import Problem, Rollout, SamplingParams


class VLLMEngine(RolloutEngine):
    """Generates with vLLM, in processes of its own, and keeps their weights equal to the policy's.

    Args:
        max_new_tokens: completion length limit, tokens; null takes what the longest prompt leaves of the policy's
            context, at most 2,048.
        temperature: sampling temperature of exploration; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off. For evaluations alone.
        top_p: sample from the most likely tokens whose probabilities reach this sum; 1 is off. For evaluations alone.
        stop: texts that end a completion, such as ["</answer>", "\\n\\nProblem:"]; it includes the token that completes
            the text. The name of a special token, such as <|im_end|>, stands for that token. Completions end at the
            model's EOS tokens and at the end of a turn in its chat template in any case.
        mode: `process` starts a server that ends with the run, `url` uses those of --engine.url; null is what fits it.
        url: addresses of vLLM servers that rloop-serve started, separated by commas: http://a:8000,http://b:8000.
        python: with mode process, the interpreter of an environment with vLLM, such as ~/vllm/bin/python; null is the
            trainer's own.
        devices: with mode process, the GPUs of the server, as in CUDA_VISIBLE_DEVICES: 1 or 2,3. Empty shares the
            trainer's own.
        tensor_parallel: with mode process, the number of GPUs that hold the model together.
        memory_share: with mode process, the share of a GPU's memory for vLLM's weights and cache.
        cpu_cache_gib: with mode process and on a CPU, the size of the cache of keys and values, GiB.
        sleep: with mode process, free the server's GPU memory while the trainer updates.
        options: with mode process, further options of vLLM, such as [--max-num-batched-tokens=16384].
        max_rows: rollouts that a server decodes at once.
        dtype: with mode process, dtype of vLLM's weights and cache; `auto` is that of the policy's updates.
        start_s: time limit of a server's start, seconds.
        timeout_s: a server without any answer for this time is stuck, seconds. Rollouts answer when complete.
        max_gap_nats: after each push of weights, the logprobs of a probe may part by this much from the trainer's.
            null is 0.001 (of any token) if both compute in float32, else 0.1 (on average).
    """

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt | None = None,
        temperature: NonNegativeFloat = 1.0,
        top_k: NonNegativeInt = 0,
        top_p: LeftOpenUnitInterval = 1.0,
        stop: tuple[str, ...] = (),
        mode: Literal["process", "url"] | None = None,
        url: str = "",
        python: str | None = None,
        devices: str = "",
        tensor_parallel: PositiveInt = 1,
        memory_share: LeftOpenUnitInterval = 0.4,
        cpu_cache_gib: PositiveFloat = 1.0,
        sleep: bool = False,
        options: tuple[str, ...] = (),
        max_rows: PositiveInt = 256,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        start_s: PositiveFloat = 900.0,
        timeout_s: PositiveFloat = 900.0,
        max_gap_nats: PositiveFloat | None = None,
    ) -> None:
        self.mode = mode
        self.url = url
        self.python = python
        self.devices = devices
        self.tensor_parallel = tensor_parallel
        self.memory_share = memory_share
        self.cpu_cache_gib = cpu_cache_gib
        self.sleep = sleep
        self.options = options
        self.max_rows = max_rows
        self.dtype = dtype
        self.start_s = start_s
        self.timeout_s = timeout_s
        self.max_gap_nats = max_gap_nats
        super().__init__(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)
        self._urls = addresses(url)
        if wrong := [*place_faults(mode, url), *temperature_faults("--engine.temperature", temperature)]:
            raise ValueError("\n".join(wrong))
        self.version = 0
        """Pushes of weights so far; whoever resumes a run may set it."""
        self._policy: Policy | None = None
        self._connection: Connection | None = None
        self._pushed: int | None = None  # fingerprint of the weights that the servers have
        self._generations: list[Generation] = []
        self._sleeps = False
        self._lock = threading.RLock()  # held while the servers get weights

    reports_routed_experts = True
    works_beside_updates = True
    takes_updates_in_flight = True

    @property
    def one_per_rank(self) -> bool:
        """Whether each process of a job starts a server of its own: not if servers or GPUs are named."""
        return not self._urls and not self.devices

    @property
    def process_id(self) -> int | None:
        """Of the server, if there is one of the trainer's own; processes under it compute."""
        process = None if self._connection is None else self._connection.process
        return None if process is None else process.pid

    def validate_with(self, policy: Policy) -> list[str]:
        """Conflicts with this policy and with the machine: an interpreter without vLLM, a server that is not there."""
        faults = [*super().validate_with(policy), *(sleep_faults(self._urls, policy.device) if self.sleep else ())]
        if self._urls:
            return [*faults, *url_faults([Server(address) for address in self._urls], self._loop, policy)]
        return [*faults, *python_faults(interpreter(self.python))]

    def beside_faults(self) -> list[str]:
        """The server can't sleep while it generates."""
        told = "with --loop.staleness, the server generates during the updates and never rests; leave out one of them"
        return [f"--engine.sleep true: {told}"] if self.sleep else []

    def bind(self, policy: Policy) -> None:
        """Generate with this policy from now on. A process stays if it was started for the same model."""
        if self._policy is None or not same_model(self._policy, policy):
            self.close()
        self._policy, self._pushed = policy, None

    def sync(self) -> None:
        """Push the policy's weights if they have changed.

        With `updates_in_flight`, rollouts that are being generated go on with them; else they are finished before.

        A process is started here if `longest_rollout` is known, else with the first rollouts, which then push.

        Raises:
            EngineError: a server is lost, stuck, or computes with other weights afterwards.
            NonFiniteError: weights or logits are NaN or infinite.
        """
        with self._lock:
            if self._connection is not None:
                self._push(self._connection)
            elif self._policy is not None and self.longest_rollout is not None:
                self._ready(self._policy, self.longest_rollout)

    def generate(self, problems: Sequence[Problem], n: int, sampling: SamplingParams) -> list[Rollout]:
        """n rollouts of each problem, problem-major: rollout g of problem p is element p * n + g.

        A rollout's random numbers depend on its place in the request and on the seed, not on `max_rows` or the number
        of servers. Its logprobs depend on the batches that vLLM makes, by rounding. On a GPU, rounding may part a
        rollout from its twin in an equal run.

        Raises:
            RuntimeError: no policy is bound.
            ValueError: a prompt is empty, or does not fit the model together with `max_new_tokens`.
            EngineError: a server is lost, stuck, or computes with other weights, or does not take the temperature.
            NonFiniteError: weights or logits are NaN or infinite.
        """
        return [rollout for part in self.generate_parts(problems, n, sampling) for rollout in part]

    def generate_parts(
        self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0
    ) -> Iterator[list[Rollout]]:
        """The rollouts of `generate`, at least `max_rows` at a time."""
        yield from self.results(self.begin(problems, n, sampling, done))

    def begin(self, problems: Sequence[Problem], n: int, sampling: SamplingParams, done: int = 0) -> Generation:
        """Start to generate, and return while the servers work; `results` waits for the rollouts."""
        if self._policy is None:
            raise RuntimeError("VLLMEngine.generate needs a policy; call bind(policy) first")
        if wrong := [*temperature_faults("the sampling's temperature", sampling.temperature)]:
            raise EngineError("\n".join(wrong))
        streams = self.updates_in_flight
        job = Job.of(self._policy, problems, n, sampling, max_rows=self.max_rows, done=done, streams=streams)
        with self._lock:
            connection = self._ready(self._policy, job.tokens)
        generation = Generation(job, connection.servers, self._loop)
        self._generations = [*(one for one in self._generations if one.running), generation]
        return generation

    def results(self, generation: Generation) -> Iterator[list[Rollout]]:
        """Wait for the rollouts of `begin`, in parts of whole problems."""
        connection = self._connection
        if connection is None:
            raise RuntimeError("VLLMEngine.results: the engine was closed")
        with self._closing_when_lost(connection):
            for part in generation.parts(connection.patience(), self.report):
                with self._lock:
                    connection.check_weights()
                yield part
        if self.sleep and not any(one.running for one in self._generations):
            connection.sleep()
            self._sleeps = True

    def cancel(self) -> None:
        """Give up all requests. Whoever waits for their results gets a CancelledError."""
        for generation in self._generations:
            generation.cancel()

    def close(self) -> None:
        """End the process, if there is one, and forget the servers."""
        self.cancel()
        if self._connection is not None:
            self._connection.close()
        self._connection, self._pushed, self._generations, self._sleeps = None, None, [], False

    @contextmanager
    def _closing_when_lost(self, connection: Connection) -> Iterator[None]:
        """After a fault of a server in the block, the next request starts or looks for one again."""
        try:
            yield
        except EngineError as error:
            explained = connection.explained(error)
            self.close()
            raise explained from error

    def _ready(self, policy: Policy, tokens: int) -> Connection:
        """Servers with the policy's weights, that take this many tokens of prompt and completion."""
        if self._connection is not None and self._connection.tokens < tokens and not self._urls:
            self.close()  # a longer request than any before
        if self._connection is None:
            limits, loop = Limits(self.start_s, self.timeout_s), self._loop
            if self._urls:
                self._connection = connected([Server(address) for address in self._urls], limits, policy, tokens, loop)
            else:
                self._connection = started(self._process_settings(policy), limits, policy, tokens, loop)
        elif self._connection.tokens < tokens:
            raise EngineError(
                f"--engine.url {self.url}: it takes {self._connection.tokens} tokens of prompt and completion, and "
                f"{tokens} are needed; start it with --max-model-len {tokens}"
            )
        if self._sleeps:
            self._connection.wake()
            self._sleeps = False
        if self._pushed is None:  # a new server, or a new policy
            self._push(self._connection)
        return self._connection

    def _push(self, connection: Connection) -> None:
        policy = self._policy
        if policy is None or self._pushed == (found := on_ranks(self.ranks, policy, fingerprint)):
            return
        on_ranks(self.ranks, policy, Policy.check_finite)
        for generation in () if self.updates_in_flight else self._generations:
            generation.finish(connection.patience())
        if self._sleeps:
            connection.wake()
            self._sleeps = False
        self._pushed = None
        self.version += 1
        with self._closing_when_lost(connection):
            gap = connection.push(policy, self.version, self.ranks)
        in_float32 = connection.dtype == "float32" and policy.compute_dtype == torch.float32
        nats = truth.checked(gap, self.version, self.max_gap_nats, in_float32=in_float32)
        self.sync_metrics = {"policy/probe_gap_nats": nats}
        self._pushed = found

    @cached_property
    def _loop(self) -> LoopThread:
        return LoopThread()

    def _process_settings(self, policy: Policy) -> ProcessSettings:
        dtype = str(policy.compute_dtype).removeprefix("torch.") if self.dtype == "auto" else self.dtype
        given = {field.name: getattr(self, field.name) for field in fields(ProcessSettings)}
        return ProcessSettings(**{**given, "python": interpreter(self.python), "dtype": dtype})
