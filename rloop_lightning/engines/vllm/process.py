"""A vLLM server as a child process of the trainer, on a Unix socket in a private folder.

    process = EngineProcess(python, policy, flags, {})
    server = process.server
    process.check()             # raises once it has ended
    process.stop()

It ends with the trainer, however that ends. The folder holds the socket, the log, the model's config and tokenizer, and
what lets vLLM's environment find the plugin; no weights.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import rloop_lightning
from rloop_lightning.engines.vllm.client import Server
from rloop_lightning.engines.vllm.serve import PARENT_VARIABLE
from rloop_lightning.errors import EngineError
from rloop_lightning.model.policy import Policy
from rloop_lightning.system.terminal import one_line

_PREFIX = "rloop-engine-"
_SHOWN_LINES, _SHOWN_ERRORS, _READ_LINES = 12, 4, 2000
_ERROR = re.compile(r"\b\w*(Error|Exception)\b: ")
_ENDING_S = 1.0  # between the end of a server's connections and its own
_STOP_S = 5.0  # that a server gets to end by itself
_DISTRIBUTION = f"rloop_lightning-{rloop_lightning.__version__}.dist-info"
_PLUGIN = "[vllm.general_plugins]\nrloop = rloop_lightning.engines.vllm.plugin:register\n"


class EngineProcess:
    """Starts the server; it is not ready at once.

    Args:
        python: an interpreter with vLLM.
        policy: gives the model's config and its tokenizer.
        flags: options of `rloop-serve`.
        variables: of its environment, beside the trainer's.
    """

    def __init__(self, python: str, policy: Policy, flags: Sequence[str], variables: Mapping[str, str]) -> None:
        _remove_left_behind()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{_process_ids()}-"))
        socket, self._log = self._folder / "socket", self._folder / "log"
        model = self._folder / "model"
        _write_model(policy, model)
        write_plugin(self._folder)
        command = [python, "-m", "rloop_lightning.engines.vllm.serve", str(model), "--uds", str(socket), *flags]
        environment = {
            **os.environ,
            **variables,
            "PYTHONPATH": str(self._folder),
            PARENT_VARIABLE: str(os.getpid()),
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # handles of `ipc`, which only this process can send
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # so that Ctrl-C reaches the trainer alone, which finishes its step with the server
            )
        self.server = Server("http://engine", socket, "--engine vllm")
        self._stop = weakref.finalize(self, _stop, self._process, self._folder)

    @property
    def pid(self) -> int:
        """Process id of the server; its own children compute."""
        return self._process.pid

    def check(self) -> None:
        """Raise EngineError if the server has ended."""
        code = self._process.poll()
        if code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise EngineError(f"vLLM {how}\n{self.last_lines()}")

    def wait_for_end(self) -> None:
        """Raise EngineError if the server ends within a moment, as one does that has just broken its connections."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
        self.check()

    def last_lines(self) -> str:
        """The end of the server's log, for messages."""
        try:
            log = self._log.open(encoding="utf-8", errors="replace")
        except OSError:  # the folder was removed as the engine was closed
            return "its log is gone"
        with log:
            lines = list(deque((line.rstrip() for line in log if line.strip()), maxlen=_READ_LINES))
        end = lines[-_SHOWN_LINES:]
        errors = [line for line in lines[:-_SHOWN_LINES] if _ERROR.search(line)]  # the cause often comes long before
        shown = [*dict.fromkeys(errors[-_SHOWN_ERRORS:]), *end]
        return "\n".join(["the last lines of its log:", *(f"  {one_line(line, limit=300)}" for line in shown)])

    def stop(self) -> None:
        """End the server and its children, and remove the folder."""
        self._stop()


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children end with it (plugin.py)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _write_model(policy: Policy, folder: Path) -> None:
    """What vLLM needs to build the model, without weights: the first push brings them."""
    config = copy.deepcopy(policy.model.config)
    if hasattr(config, "quantization_config"):  # the weights arrive dequantised
        del config.quantization_config
    config.architectures = [type(policy.model).__name__]
    config.dtype = policy.model.dtype
    config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def write_plugin(folder: Path) -> None:
    """Make this package, and its plugin, importable in vLLM's environment, without the rest of the trainer's.

    The trainer's own site-packages on that path would hide vLLM's pinned ones.
    """
    (folder / "rloop_lightning").symlink_to(Path(rloop_lightning.__file__).parent)
    metadata = folder / _DISTRIBUTION
    metadata.mkdir()
    version = rloop_lightning.__version__
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rloop-lightning\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(_PLUGIN)


def _remove_left_behind() -> None:
    """Remove the folders of trainers that were killed; those of other machines and containers are left alone."""
    ids = _process_ids()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-{ids}-*") if ids else ():
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            ours = folder.stat().st_uid == os.getuid()
        except OSError:
            continue
        if ours and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _process_ids() -> str:
    """Names the process ids among which this one is unique: a boot's, a container's. Empty if the system tells none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        return hashlib.sha256((boot + os.readlink("/proc/self/ns/pid")).encode()).hexdigest()[:8]
    except OSError:
        return ""
