"""`rloop-serve` up to the point where vLLM takes over, and the plugin in processes that are none of ours."""

from __future__ import annotations

import subprocess
import sys

from rloop_lightning.engines.vllm.description import described, differences
from rloop_lightning.engines.vllm.serve import flags

SHAPE = described("Qwen2ForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 50, "rope_theta": 1e4})


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rloop_lightning.engines.vllm.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_users_options_override_ours() -> None:
    given = flags("folder", SHAPE, ["--port", "8001", "--host", "0.0.0.0", "--backend", "ipc"], on_cpu=False)
    assert given[:2] == ["--model", "folder"]
    assert given[given.index("--weight-transfer-config") + 1] == '{"backend": "ipc"}'
    assert "--backend" not in given
    assert given.index("127.0.0.1") < given.index("0.0.0.0")  # the last one counts
    assert given[given.index("--served-model-name") + 1 :][:2] == ["policy", SHAPE]
    assert "--no-enable-chunked-prefill" not in given
    on_cpu = flags("folder", SHAPE, ["--backend=shm"], on_cpu=True)
    assert on_cpu[on_cpu.index("--weight-transfer-config") + 1] == '{"backend": "shm"}'
    assert "--no-enable-chunked-prefill" in on_cpu


def test_help_and_what_is_missing() -> None:
    shown = serve("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "rloop-serve MODEL" in shown.stdout
    wrong = serve("--port", "8000")
    assert wrong.returncode == 2
    assert wrong.stderr == "rloop-serve: error: the first argument is the model, got --port\n"
    missing = serve("model")
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"rloop-serve: error: {sys.executable} can't import vLLM: ")


def test_differences_are_named() -> None:
    assert SHAPE == "shape/Qwen2ForCausalLM/hidden_size=64/num_hidden_layers=2/vocab_size=50"
    assert differences(SHAPE, SHAPE) == []
    other = described("Qwen2ForCausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "num_experts": 4})
    assert differences(SHAPE, other) == [
        "hidden_size 32 instead of 64",
        "vocab_size missing instead of 50",
        "num_experts 4 instead of missing",
    ]
    assert differences(SHAPE, described("LlamaForCausalLM", {})) == ["LlamaForCausalLM instead of Qwen2ForCausalLM"]


def test_the_plugin_leaves_other_programs_with_vllm_alone() -> None:
    """It would import vLLM, which this interpreter does not have."""
    code = "from rloop_lightning.engines.vllm.plugin import register; register()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    loaded = (
        "import sys, rloop_lightning.engines.vllm.serve; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
