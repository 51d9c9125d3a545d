"""`rloop-serve MODEL`: a vLLM server with the flags that training needs. It runs in vLLM's environment.

    rloop-serve Qwen/Qwen2.5-0.5B --port 8000 --max-model-len 4096
    rloop-fit --engine vllm --engine.url http://localhost:8000 ...

All further options are vLLM's own, and override those below. `--engine.mode process` starts the same server as a child
of the trainer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from rloop_lightning.engines.vllm.description import described
from rloop_lightning.engines.vllm.plugin import ENGINE_VARIABLE, die_with

SERVED_NAME = "policy"
PARENT_VARIABLE = "RLOOP_ENGINE_PARENT"
"""Process id of the trainer with which a server ends; not set for `rloop-serve` in a terminal."""

_USAGE = """usage: rloop-serve MODEL [--port 8000] [--host 127.0.0.1] [--backend ipc|nccl|shm] [vLLM's options]

Starts a vLLM server for rloop-fit --engine vllm --engine.url http://HOST:PORT. Run it in the environment that has vLLM.
MODEL is a folder or a name on the hub with the architecture of the policy; the trainer sends its own weights. --backend
is how they travel: shm (a CPU, the same machine), ipc (a GPU that the trainer uses too) or nccl (another GPU). Whoever
reaches the port can replace the weights: leave --host as it is, or keep the port closed to others.
"""
_ENVIRONMENT = {
    ENGINE_VARIABLE: "1",
    "VLLM_SERVER_DEV_MODE": "1",  # the routes that push weights
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would not load plugins again
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # a server that closes idle connections may close one as it is used
}
_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",  # or the logprobs compile on first use, and need a compiler
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every server of a machine computes on the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine computes in its own process, not in one more below it
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `rloop-serve` command. Returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    model, *options = arguments
    if model.startswith("-"):
        print(f"rloop-serve: error: the first argument is the model, got {model}", file=sys.stderr)
        return 2
    if parent := os.environ.get(PARENT_VARIABLE):
        die_with(int(parent))
    os.environ.update(_ENVIRONMENT)
    try:
        from transformers import AutoConfig
        from vllm.entrypoints.launchers.api_server.entry import main as serve
        from vllm.platforms import current_platform
    except ImportError as error:
        print(f"rloop-serve: error: {sys.executable} can't import vLLM: {error}", file=sys.stderr)
        return 2
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        print(f"rloop-serve: error: {model} can't be read as a model: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    shape = described(config.architectures[0], config.get_text_config().to_dict())
    if current_platform.is_cpu():
        for name, value in _ON_CPU.items():
            os.environ.setdefault(name, value)
    sys.argv = ["rloop-serve", *flags(model, shape, options, on_cpu=current_platform.is_cpu())]
    serve()
    return 0


def flags(model: str, shape: str, options: Sequence[str], *, on_cpu: bool) -> list[str]:
    """vLLM's command line: our flags, then the user's, which override them.

    Args:
        shape: the model's, a second name under which the server lists it.
        options: the user's; `--backend` is ours.
        on_cpu: whether vLLM computes on a CPU.
    """
    backend, options = _backend(options, default="shm" if on_cpu else "nccl")
    ours = {
        "--model": model,
        "--host": "127.0.0.1",
        "--generation-config": "vllm",  # the model's own would change the sampling
        "--logprobs-mode": "processed_logprobs",  # after temperature, top-k and top-p
        "--scheduling-policy": "priority",  # the probe of new weights comes before rollouts that run
        "--weight-transfer-config": json.dumps({"backend": backend}),
        "--uvicorn-log-level": "warning",
    }
    given = [word for pair in ours.items() for word in pair]
    names = ["--served-model-name", SERVED_NAME, shape]
    # The routes for token ids. Access logs would grow by a line a request.
    routes = ["--enable-scale-out", "--disable-uvicorn-access-log"]
    # With seeds, the CPU build fails on prompts that it splits.
    cpu = ["--enforce-eager", "--no-enable-chunked-prefill"] if on_cpu else []
    return [*given, *names, *routes, *cpu, *options]


def _backend(options: Sequence[str], default: str) -> tuple[str, list[str]]:
    """The value of `--backend` and the other options."""
    backend, rest, words = default, [], iter(options)
    for word in words:
        if word == "--backend":
            backend = next(words, default)
        elif word.startswith("--backend="):
            backend = word.partition("=")[2]
        else:
            rest.append(word)
    return backend, rest


if __name__ == "__main__":
    sys.exit(main())
