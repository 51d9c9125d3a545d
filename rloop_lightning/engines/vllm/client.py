"""HTTP to vLLM's servers, from an event loop in a thread of its own, so that requests go on while the trainer works.

    loop = LoopThread()
    server = Server("http://localhost:8000", loop)
    version = loop.wait(server.get("/version"), limit)

A server that answers with an error, not at all, or too late is an EngineError.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import resource
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import httpx

from rloop_lightning.errors import EngineError
from rloop_lightning.system.terminal import one_line

T = TypeVar("T")

TICK_S = 0.2  # between two looks at a server's process
# Connections idle for longer are not used again. vLLM closes them after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE), and HTTPX
# would use them for 5 s, too: a request sent as the server closes gets no answer.
_IDLE_S = 1.0
# A request may be silent for minutes, after which a network forgets it, or the server's machine may be gone.
_KEPT_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
    _KEPT_ALIVE += [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60), (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)]
_MOST_FILES = 65536
_SHOWN = 600  # characters of a server's error


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        _open_more_files()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True).start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the background."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def wait(self, coroutine: Coroutine[Any, Any, T], watch: Callable[[], None]) -> T:
        """Run a coroutine and return its result; see `result`."""
        return result(self.start(coroutine), watch)


def _open_more_files() -> None:
    """A request is a connection, and a generation has more of them than many systems let a process open at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def result(future: Future[T], watch: Callable[[], None]) -> T:
    """The result of what runs in the background. It is cancelled if `watch` or a signal raises.

    Args:
        watch: called several times a second while it runs.
    """
    try:
        while not concurrent.futures.wait([future], TICK_S).done:
            watch()
        return future.result()
    finally:
        future.cancel()


class Patience:
    """Raises once nothing has been heard for a time.

    Args:
        seconds: the limit.
        setting: what the message names: the option that sets the limit.
        alive: raises if a server's process has ended.
    """

    def __init__(self, seconds: float, setting: str, alive: Callable[[], None] = lambda: None) -> None:
        self._seconds = seconds
        self._setting = setting
        self._alive = alive
        self.heard()

    def heard(self) -> None:
        """Start to count again."""
        self._since = time.monotonic()

    def __call__(self) -> None:
        """Raise EngineError if the limit has passed, or the process has ended."""
        self._alive()
        if time.monotonic() - self._since > self._seconds:
            raise EngineError(
                f"vLLM is stuck: no answer for {self._seconds:g} s ({self._setting} {self._seconds:g}; raise it if "
                "the work takes that long)"
            )


class Server:
    """One vLLM server.

    Args:
        url: its address, without a path.
        path: the Unix socket that it listens on; None is the address's port.
        what: its name in messages.
    """

    def __init__(self, url: str, path: Path | None = None, what: str = "") -> None:
        self.url = url.rstrip("/")
        self.what = what or f"--engine.url {self.url}"
        self.rollouts = 0  # that it works on
        self.version = 0  # of the weights with which it generates
        self.events = 0  # of streams that have arrived
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_S)
        transport = (
            httpx.AsyncHTTPTransport(limits=limits, socket_options=_KEPT_ALIVE)
            if path is None
            else httpx.AsyncHTTPTransport(uds=str(path), limits=limits)
        )
        # Limits of time are Patience's: one request may take as long as a whole generation.
        self._client = httpx.AsyncClient(
            transport=transport, base_url=self.url, timeout=httpx.Timeout(None, connect=10.0)
        )

    async def get(self, path: str, **params: str) -> Any:
        """The JSON that a path answers with.

        Raises:
            EngineError: the server can't be reached, or answers with an error.
        """
        return await self._ask("GET", path, None, params)

    async def post(self, path: str, body: Any = None, **params: str) -> Any:
        """The JSON that a path answers with, None without one; raises as `get`."""
        return await self._ask("POST", path, body, params)

    async def stream(self, path: str, body: Any) -> AsyncGenerator[Any, None]:
        """The JSON events that a path answers with, as they arrive; raises as `get`."""
        try:
            async with self._client.stream("POST", path, json=body) as answer:
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                self._check(answer, path)
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        self.events += 1
                        yield json.loads(line.removeprefix("data: "))
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    async def _ask(self, method: str, path: str, body: Any, params: dict[str, str]) -> Any:
        try:
            answer = await self._client.request(method, path, json=body, params=params)
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        self._check(answer, path)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise EngineError(f"{self.what}: its answer to {path} is no JSON; is it a vLLM server?") from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self.what}: no answer from vLLM ({_reason(error)})")

    def _check(self, answer: httpx.Response, path: str) -> None:
        if answer.status_code != httpx.codes.OK:
            raise Refused(
                answer.status_code,
                f"{self.what}: vLLM answers {answer.status_code} to {path}: {one_line(answer.text, limit=_SHOWN)}",
            )


class Unreachable(EngineError):
    """A server can't be reached, or the connection to it broke."""


class Refused(EngineError):
    """A server answered with an error.

    Args:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _reason(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__, limit=200)
