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


class JsonHandler(BaseHTTPRequestHandler):
    """Answers both kinds of requests with JSON: `answer(path, body)`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, path: str, body: bytes) -> None:
        raise NotImplementedError

    def send(self, answer: Any, status: int = 200) -> None:
        self.send_text(json.dumps(answer), status)

    def send_text(self, answer: str, status: int = 200) -> None:
        text = answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening(handler: type[JsonHandler]) -> Iterator[str]:
    """The address of a server with this handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(given: Answers) -> Iterator[str]:
    """The address of a server with these answers. It answers other paths with 404, and `None` never."""
    over = threading.Event()

    class Handler(JsonHandler):
        def answer(self, path: str, body: bytes) -> None:
            if path in given and given[path] is None:
                over.wait(60)
            self.send(given.get(path, {"detail": "Not Found"}), 200 if path in given else 404)

    with listening(Handler) as address:
        try:
            yield address
        finally:
            over.set()


def interpreter(folder: Path, version: str, server: str = "exit 3") -> str:
    """A program that says it has this version of vLLM, and does this where a server is to be started."""
    path = folder / "python"
    path.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then echo '[true, "{version}"]'; exit 0; fi
{server}
""")
    path.chmod(0o755)
    return str(path)
