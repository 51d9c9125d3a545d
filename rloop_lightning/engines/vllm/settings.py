"""Where vLLM runs: how a server process of the trainer's own is started, and addresses of others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch

from rloop_lightning.engines.vllm.transfer import Backend
from rloop_lightning.model.policy import Policy

LOWEST_TEMPERATURE = 0.01  # vLLM raises lower ones to it without a word; 0 is greedy
_SHORTEST = 1024  # tokens that a server takes at least, if the policy does
_TOKENS_AT_ONCE = 8192  # of a prefill, at least


@dataclass(frozen=True)
class ProcessSettings:
    """The settings of VLLMEngine that concern its own process, under the same names."""

    python: str
    dtype: str
    max_rows: int
    devices: str
    memory_share: float
    cpu_cache_gib: float
    tensor_parallel: int
    sleep: bool
    options: Sequence[str]

    def backend(self, policy: Policy) -> Backend:
        """How weights travel: on a GPU of its own by NCCL, on the trainer's by handles to its memory."""
        if policy.device.type == "cpu":
            return "shm"
        return "nccl" if self.devices else "ipc"

    def environment(self, device: torch.device) -> dict[str, str]:
        """Variables of the process that differ from the trainer's.

        Args:
            device: the trainer's; of several ranks on a machine, each has a GPU and a process.
        """
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": self.devices}
        if device.type != "cuda" or self.tensor_parallel > 1:
            return {}
        own, visible = device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[own] if visible else str(own)}

    def tokens(self, policy: Policy, needed: int) -> int:
        """The longest prompt and completion that the process takes: with room, so that it is not started again.

        Args:
            needed: by the first request.
        """
        return max(needed, min(policy.context_tokens, max(2 * needed, _SHORTEST)))

    def flags(self, policy: Policy, tokens: int) -> list[str]:
        """Options of `rloop-serve`.

        Args:
            tokens: the longest prompt and completion.
        """
        on_cpu = policy.device.type == "cpu"
        given: dict[str, object] = {
            "--backend": self.backend(policy),
            "--load-format": "dummy",  # the first push brings the weights
            "--dtype": self.dtype,
            "--max-model-len": tokens,
            "--max-num-batched-tokens": max(tokens, _TOKENS_AT_ONCE),
            "--max-num-seqs": self.max_rows,
            "--tensor-parallel-size": self.tensor_parallel,
            **(
                {"--kv-cache-memory-bytes": int(self.cpu_cache_gib * 2**30)}
                if on_cpu
                else {"--gpu-memory-utilization": self.memory_share}
            ),
        }
        switches = {
            "--enable-return-routed-experts": policy.wants_routed_experts,
            "--enable-sleep-mode": self.sleep,
        }
        words = [word for name, value in given.items() for word in (name, str(value))]
        return [*words, *(name for name, on in switches.items() if on), *self.options]


def interpreter(python: str | None) -> str:
    """The interpreter of --engine.python, which runs in another folder than the trainer."""
    given = os.path.expanduser(python or sys.executable)
    return os.path.abspath(given) if os.sep in given else given  # a link stays one, or the environment would be lost


def addresses(url: str) -> list[str]:
    """The addresses of --engine.url."""
    return [address.strip() for address in url.split(",") if address.strip()]


def place_faults(mode: str | None, url: str) -> Iterator[str]:
    """What is wrong with --engine.mode and --engine.url."""
    if set("@?#") & set(url):
        yield (
            "--engine.url: an address must not hold credentials or a query, since config.yaml records it; give "
            "http://HOST:PORT, and reach a server that asks for a password through a tunnel, such as ssh -N -L "
            "8000:localhost:8000 HOST and --engine.url http://localhost:8000"
        )
        return
    given = addresses(url)
    if mode == "url" and not given:
        yield "--engine.mode url: give the servers' addresses with --engine.url http://HOST:PORT"
    if mode == "process" and given:
        yield f"--engine.mode process starts a server of its own; leave out --engine.url {url}, or the mode"
    for address in given:
        if not _is_address(address):
            yield f"--engine.url {address}: expected http://HOST:PORT"


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # the port is no number up to 65535, or a bracket is missing
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not parts.path.strip("/")


def sleep_faults(urls: Sequence[str], device: torch.device) -> Iterator[str]:
    """Servers that can't sleep."""
    if urls:
        yield "--engine.sleep true: servers of --engine.url are not the trainer's to put to sleep; leave it out"
    elif device.type != "cuda":
        yield f"--engine.sleep true frees the memory of a GPU, and this run is on {device.type}; leave it out"


def temperature_faults(what: str, temperature: float) -> Iterator[str]:
    """Temperatures that vLLM would change."""
    if 0 < temperature < LOWEST_TEMPERATURE:
        yield f"{what} {temperature:g}: vLLM takes 0, or at least {LOWEST_TEMPERATURE:g}"
