"""Rollouts in progress: requests to the servers run in the background until their results are asked for.

generation = Generation(job, servers, loop)
...                                         # the trainer works
for part in generation.parts(patience, report): ...
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from rloop_lightning.engines.prompts import check_prompts
from rloop_lightning.engines.stops import special_tokens
from rloop_lightning.engines.vllm.client import TICK_S, LoopThread, Patience, Refused, Server, result
from rloop_lightning.engines.vllm.protocol import (
    PATH,
    Completion,
    Streamed,
    completions,
    raise_if_not_finite,
    request_body,
    rollout_seed,
)
from rloop_lightning.errors import EngineError
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem, Rollout, SamplingParams

_WAITING_PER_ROW = 2  # rollouts that a server holds for each that it decodes, so that none of its rows is ever idle


@dataclass(frozen=True)
class Job:
    """What to generate.

    Args:
        policy: gives tokenizer and stop tokens.
        problems, n, sampling: as in `RolloutEngine.generate`.
        prompts: the problems' tokens.
        stop_ids: tokens that end a completion.
        texts: texts that do.
        max_rows: rollouts that a server decodes at once.
        done: problems at the beginning to leave out.
        streams: ask for each token when it is sampled, which tells the weights that sampled it.
    """

    policy: Policy
    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    n: int
    sampling: SamplingParams
    stop_ids: frozenset[int]
    texts: tuple[str, ...]
    max_rows: int
    done: int = 0
    streams: bool = False

    @classmethod
    def of(
        cls,
        policy: Policy,
        problems: Sequence[Problem],
        n: int,
        sampling: SamplingParams,
        *,
        max_rows: int,
        done: int,
        streams: bool,
    ) -> Self:
        """The job of a request.

        Raises:
            ValueError: the model can't take a prompt.
        """
        prompts = [policy.prompt_ids(problem) for problem in problems]
        check_prompts(problems, prompts, sampling, policy.context)
        special = special_tokens(policy.tokenizer)
        stop_ids = policy.stop_token_ids | {special[text] for text in sampling.stop if text in special}
        vocabulary = policy.model.config.get_text_config().vocab_size
        return cls(
            policy,
            problems,
            prompts,
            n,
            sampling,
            stop_ids=frozenset(token for token in stop_ids if token < vocabulary),  # vLLM refuses others
            texts=tuple(text for text in sampling.stop if text not in special),
            max_rows=max_rows,
            done=done,
            streams=streams,
        )

    @property
    def rows_per_request(self) -> int:
        """Rollouts in a request. vLLM 0.30 fails to stream more than one."""
        return 1 if self.streams else min(self.n, self.max_rows)

    @property
    def wants_experts(self) -> bool:
        """Whether rollouts report their routed experts. A server that can reports those of every request."""
        return self.sampling.report_routed_experts and self.policy.wants_routed_experts

    @property
    def tokens(self) -> int:
        """The longest prompt and completion."""
        return max(map(len, self.prompts), default=0) + self.sampling.max_new_tokens


class Generation:
    """Starts a job's requests."""

    def __init__(self, job: Job, servers: Sequence[Server], loop: LoopThread) -> None:
        self._job = job
        self._servers = servers
        self._answered: list[tuple[int, int]] = []  # tokens and rollouts of each answer
        at_once = max(1, _WAITING_PER_ROW * job.max_rows * len(servers) // job.rows_per_request)
        self._places = asyncio.Semaphore(at_once)
        self._futures: list[Future[list[Completion]]] = [
            loop.start(self._problem(number)) for number in range(job.done, len(job.problems))
        ]

    @property
    def running(self) -> bool:
        """Whether a request is still to be answered."""
        return not all(future.done() for future in self._futures)

    def cancel(self) -> None:
        """Give up what is not answered."""
        for future in self._futures:
            future.cancel()

    def finish(self, patience: Patience) -> None:
        """Wait for all answers. Their faults come when the results are asked for."""
        patience.heard()
        while concurrent.futures.wait(self._futures, TICK_S).not_done:
            self._watch(patience, lambda tokens, rollouts: None)

    def parts(self, patience: Patience, report: Callable[[int, int], None]) -> Iterator[list[Rollout]]:
        """The rollouts of whole problems, in order, at least `max_rows` at a time except in the last part.

        Raises:
            EngineError: a server is lost or stuck.
            NonFiniteError: logits are NaN or infinite.
        """
        ready: list[Rollout] = []
        patience.heard()
        try:
            for number, future in enumerate(self._futures, self._job.done):
                found = result(future, lambda: self._watch(patience, report))
                ready += self._rollouts(number, found)
                if len(ready) >= self._job.max_rows:
                    self._pass_on(report)
                    yield ready
                    ready = []
                    patience.heard()  # the time of whoever took them is not the servers'
            self._pass_on(report)
            if ready:
                yield ready
        finally:
            self.cancel()

    def _watch(self, patience: Patience, report: Callable[[int, int], None]) -> None:
        """Report what has arrived; raise if nothing does."""
        if self._pass_on(report):
            patience.heard()
        patience()

    def _pass_on(self, report: Callable[[int, int], None]) -> bool:
        """Report what has arrived. Returns whether something has."""
        some = bool(self._answered)
        while self._answered:
            report(*self._answered.pop())
        return some

    async def _problem(self, number: int) -> list[Completion]:
        """All completions of one problem."""
        job = self._job
        if job.sampling.temperature == 0:  # they are all the same, and vLLM refuses to make more than one
            return await self._request(number, 1, 0) * job.n
        seed, size = rollout_seed(job.sampling.seed, number), job.rows_per_request
        starts = range(0, job.n, size)
        asked = [self._request(number, min(size, job.n - start), seed + start) for start in starts]
        return [one for found in await asyncio.gather(*asked) for one in found]

    async def _request(self, number: int, count: int, seed: int) -> list[Completion]:
        job = self._job
        body = request_body(job.prompts[number], count, seed, job.sampling, job.stop_ids, job.texts)
        async with self._places:
            server = min(self._servers, key=lambda server: server.rollouts)
            server.rollouts += count
            try:
                found = completions(await self._answer(server, body), server.version)
            except Refused as error:
                raise_if_not_finite(error)
                raise
            finally:
                server.rollouts -= count
        if len(found) != count or any(one.reason not in ("stop", "length") for one in found):
            reasons = ", ".join(sorted({one.reason for one in found}))
            raise EngineError(f"{server.what}: vLLM ended {len(found)} of {count} rollouts by: {reasons}")
        if not self._job.wants_experts:
            found = [replace(one, experts=None) for one in found]  # or a whole evaluation's would be held
        if not job.streams:
            self._arrived(sum(len(one.tokens) for one in found), count)
        return found

    async def _answer(self, server: Server, body: dict[str, Any]) -> Any:
        if not self._job.streams:
            return await server.post(PATH, body)
        streamed = Streamed()
        async with aclosing(server.stream(PATH, {**body, "stream": True})) as events:
            async for event in events:
                self._arrived(*streamed.add(event, server.version))
        return streamed.answer()

    def _arrived(self, tokens: int, rollouts: int) -> None:
        copies = self._job.n if self._job.sampling.temperature == 0 else 1
        self._answered.append((copies * tokens, copies * rollouts))

    def _rollouts(self, number: int, found: Sequence[Completion]) -> list[Rollout]:
        job = self._job
        prompt_ids = np.array(job.prompts[number], dtype=np.int64)
        texts = job.policy.decode([one.tokens.tolist() for one in found])
        return [
            Rollout(
                problem_id=job.problems[number].id,
                prompt_ids=prompt_ids,
                completion_ids=one.tokens,
                sampling_logprobs=one.logprobs,
                text=text,
                finish_reason="stop" if self._stopped(one, text) else "length",
                routed_experts=one.experts,
                versions=one.versions,
            )
            for one, text in zip(found, texts, strict=True)
        ]

    def _stopped(self, one: Completion, text: str) -> bool:
        """Whether a completion ended, even with the last token that it may have."""
        return int(one.tokens[-1]) in self._job.stop_ids or any(stop in text for stop in self._job.texts)
