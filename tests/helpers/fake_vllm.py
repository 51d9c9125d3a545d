"""A stand-in for a vLLM server and for an interpreter that has vLLM: what the trainer asks before it sends weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answers = dict[str, Any]


def answers(shape: str, *, version: str = "0.30.0", **settings: Any) -> Answers:
    """What a server of rloop-serve answers, by path; `settings` change vLLM's model configuration."""
    model = {
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_return_routed_experts": False,
        "max_model_len": 4096,
        "dtype": "torch.float32",
        **settings,
    }
    return {
        "/version": {"version": version},
        "/v1/models": {"data": [{"id": "policy"}, {"id": shape}]},
        "/server_info": {"vllm_config": {"model_config": model, "weight_transfer_config": {"backend": "shm"}}},
        "/init_weight_transfer_engine": {},
    }


@contextmanager
def serving(given: Answers) -> Iterator[str]:
    """The address of a server with these answers. It answers other paths with 404, and `None` never."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path in given and given[path] is None:
                over.wait(60)
            body = json.dumps(given.get(path, {"detail": "Not Found"})).encode()
            self.send_response(200 if path in given else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def interpreter(folder: Path, version: str, server: str = "exit 3") -> str:
    """A program that says it has this version of vLLM, and does this where a server is to be started."""
    path = folder / "python"
    path.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then echo '[true, "{version}"]'; exit 0; fi
{server}
""")
    path.chmod(0o755)
    return str(path)
