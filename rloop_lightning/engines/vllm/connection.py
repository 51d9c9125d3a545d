"""Servers that are ready: they have been looked at, and take weights and requests.

connection = started(settings, limits, policy, tokens, loop)      # a process of the trainer's own
connection = connected(servers, limits, policy, tokens, loop)     # servers that run already
gap = connection.push(policy, version)
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rloop_lightning.engines.vllm import truth
from rloop_lightning.engines.vllm.checks import about, server_faults
from rloop_lightning.engines.vllm.client import LoopThread, Patience, Refused, Server, Unreachable
from rloop_lightning.engines.vllm.process import EngineProcess
from rloop_lightning.engines.vllm.protocol import PATH, Completion, completions, raise_if_not_finite, request_body
from rloop_lightning.engines.vllm.settings import ProcessSettings
from rloop_lightning.engines.vllm.transfer import make_sender
from rloop_lightning.engines.vllm.weights import NamedWeights
from rloop_lightning.errors import EngineError
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.ranks import ALONE, Ranks

T = TypeVar("T")

_LOOK_AGAIN_S = 0.25
_QUIET_S = 0.02  # without a token, after which none is under way
_FIRST = -1  # priority; that of rollouts is 0


@dataclass(frozen=True)
class Limits:
    """How long to wait, seconds.

    Args:
        start_s: for a process to be ready.
        timeout_s: for any answer of a server.
    """

    start_s: float
    timeout_s: float


class Connection:
    """What the trainer asks of its servers.

    Args:
        servers: all with the same model.
        told: what each says of itself.
        limits: how long to wait.
        loop: where requests run.
        device: the trainer's.
        process: the process, if there is one.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        told: Sequence[dict[str, Any]],
        limits: Limits,
        loop: LoopThread,
        device: torch.device,
        process: EngineProcess | None = None,
    ) -> None:
        models = [one["settings"]["model_config"] for one in told]
        self.servers = servers
        self.process = process
        self.tokens = min(int(model["max_model_len"]) for model in models)
        self.dtype = str(models[0]["dtype"]).removeprefix("torch.")
        self._limits = limits
        self._loop = loop
        self._name = uuid.uuid4().hex
        self._stamp = ""  # of the weights that were pushed last
        self._sender = make_sender(told[0]["settings"]["weight_transfer_config"]["backend"], servers, device)
        self._wait(self._sender.begin())

    def patience(self) -> Patience:
        """The limit of a wait for the servers."""
        return _patience(self._limits.timeout_s, "--engine.timeout_s", self.process)

    def push(self, policy: Policy, version: int, ranks: Ranks = ALONE) -> truth.Gap:
        """Replace the servers' weights by the policy's, and forget what they computed before.

        Requests that run go on with the new weights: what they have so far is computed again. Streamed tokens are
        counted to the weights that sampled them.

        Args:
            version: of these weights.
            ranks: those that take part if the policy is sharded.

        Returns how far the servers' logprobs are from the policy's afterwards, over all servers.

        Raises:
            EngineError: a server is lost, stuck, or can't take the weights.
        """
        prompts = truth.probe_prompts(policy)
        answers = self._wait(self._push(NamedWeights(policy, ranks), version, prompts))
        gaps = [truth.gap(policy, prompts, one, ranks) for one in answers]
        return truth.Gap(max(one.largest for one in gaps), max(one.mean for one in gaps))

    def check_weights(self) -> None:
        """Raise EngineError if servers that others can reach no longer have the weights that were pushed last."""
        if self.process is None:
            self._wait(self._check_weights())

    def sleep(self) -> None:
        """Free the memory of weights and cache until `wake`."""
        self._wait(self._all("/sleep", level="1"))

    def wake(self) -> None:
        """Take the memory again."""
        self._wait(self._all("/wake_up"))

    def close(self) -> None:
        """End the process. Servers that the user started stay."""
        if self.process is not None:
            self.process.stop()

    def explained(self, error: EngineError) -> EngineError:
        """An error with the end of the process's log, if there is one."""
        return _explained(error, self.process)

    async def _push(
        self, weights: NamedWeights, version: int, prompts: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        await self._all("/pause", mode="keep")
        stamp = f"{self._name}-{version}"
        await self._sender.send(weights, stamp)
        self._stamp = stamp
        for server in self.servers:  # paused, so that no request holds a part of the cache
            if not (await server.post("/reset_prefix_cache"))["success"]:
                raise EngineError(f"{server.what}: vLLM did not forget what it computed with earlier weights")
        # Before the requests that run go on, so that it is not behind them.
        probes = asyncio.gather(*(self._probe(server, prompts) for server in self.servers))
        try:
            await self._all_arrived()
            for server in self.servers:
                server.version = version
            await self._all("/resume")
            return await probes
        finally:
            probes.cancel()

    async def _check_weights(self) -> None:
        told = await asyncio.gather(*(server.get("/weight_info") for server in self.servers))
        for server, one in zip(self.servers, told, strict=True):
            if one["weight_version"] != self._stamp:
                raise EngineError(
                    f"{server.what}: its weights are no longer those of this run: another run has pushed some, or the "
                    "server was started anew; give each run servers of its own, and resume this one"
                )

    async def _all_arrived(self) -> None:
        """Return once the tokens that were sampled before a pause are here."""
        events = -1
        while events != (events := sum(server.events for server in self.servers)):
            await asyncio.sleep(_QUIET_S)

    async def _probe(self, server: Server, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        bodies = [
            {**request_body(prompt, truth.COMPLETIONS_PER_PROMPT, number, truth.PROBE, (), ()), "priority": _FIRST}
            for number, prompt in enumerate(prompts)
        ]
        try:
            answers = await asyncio.gather(*(server.post(PATH, body) for body in bodies))
        except Refused as error:
            raise_if_not_finite(error)
            raise
        return [one for answer in answers for one in completions(answer)]

    async def _all(self, path: str, **params: str) -> None:
        await asyncio.gather(*(server.post(path, **params) for server in self.servers))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.wait(coroutine, self.patience())
        except EngineError as error:
            raise self.explained(error) from error


def started(settings: ProcessSettings, limits: Limits, policy: Policy, needed: int, loop: LoopThread) -> Connection:
    """A connection to a process that takes `needed` tokens of prompt and completion.

    Raises:
        EngineError: it does not start.
    """
    process = loop.wait(_spawned(settings, policy, settings.tokens(policy, needed)), lambda: None)
    patience = _patience(limits.start_s, "--engine.start_s", process)
    try:
        told = loop.wait(_ready(process.server), patience)
        return _connection([process.server], [told], limits, policy, needed, loop, process)
    except BaseException as error:
        explained = _explained(error, process) if isinstance(error, EngineError) else error
        process.stop()
        raise explained from None


def connected(servers: Sequence[Server], limits: Limits, policy: Policy, needed: int, loop: LoopThread) -> Connection:
    """A connection to servers that run already.

    Raises:
        EngineError: one can't be reached, or does not fit the policy.
    """
    patience = _patience(limits.timeout_s, "--engine.timeout_s", None)
    told = [loop.wait(about(server), patience) for server in servers]
    return _connection(servers, told, limits, policy, needed, loop, None)


def _connection(
    servers: Sequence[Server],
    told: Sequence[dict[str, Any]],
    limits: Limits,
    policy: Policy,
    needed: int,
    loop: LoopThread,
    process: EngineProcess | None,
) -> Connection:
    pairs = zip(servers, told, strict=True)
    if faults := [fault for server, one in pairs for fault in server_faults(server, one, policy, needed)]:
        raise EngineError("\n".join(faults))
    return Connection(servers, told, limits, loop, policy.device, process)


async def _spawned(settings: ProcessSettings, policy: Policy, tokens: int) -> EngineProcess:
    """A new process, started by the loop's thread: it ends with the thread that started it."""
    return EngineProcess(settings.python, policy, settings.flags(policy, tokens), settings.environment(policy.device))


async def _ready(server: Server) -> dict[str, Any]:
    """What a process says of itself once it is there."""
    while True:
        try:
            return await about(server)
        except Unreachable:
            await asyncio.sleep(_LOOK_AGAIN_S)


def _patience(seconds: float, setting: str, process: EngineProcess | None) -> Patience:
    alive: Callable[[], None] = (lambda: None) if process is None else process.check
    return Patience(seconds, setting, alive)


def _explained(error: EngineError, process: EngineProcess | None) -> EngineError:
    """The error with the end of the process's log: why it ended, if it has, or what it said last."""
    if process is None or "its log" in str(error):
        return error
    try:
        process.wait_for_end()
    except EngineError as ended:
        return ended
    return EngineError(f"{error}\n{process.last_lines()}")
