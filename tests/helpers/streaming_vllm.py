"""A stand-in for a vLLM server that generates: a token tells by its id which weights sampled it.

It does what vLLM does with a pause that keeps its requests, and notes the order of what it is asked.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fake_vllm import JsonHandler, answers, listening

from rloop_lightning.engines.vllm.protocol import PATH

FIRST_TOKEN = 5  # of the weights of the first push


class GeneratingServer:
    """Its requests sample a token every few milliseconds while it is not paused.

    Attributes:
        asked: the paths of its requests, in order; "probe" and "stream" for two kinds of requests to generate.
        pushes: updates of weights so far.
        least_pushes: before which no streamed request ends; inf: none ever does.
        stamp: the name of its weights.
        unfinished: whether an update was begun and not finished, as by a trainer that was killed.
        gone: streams that their reader left.
    """

    def __init__(self, shape: str) -> None:
        self.answers = {
            **answers(shape),
            **{path: {} for path in ("/pause", "/start_weight_update", "/update_weights", "/finish_weight_update")},
            "/resume": {},
            "/reset_prefix_cache": {"success": True},
        }
        self.asked: list[str] = []
        self.pushes = 0
        self.least_pushes = 0.0
        self.gone = 0
        self.stamp = "default"  # of its weights
        self.unfinished = False  # an update was begun, and not finished
        self._runs = threading.Event()
        self._samples = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address."""
        fake = self

        class Handler(JsonHandler):
            def answer(self, path: str, body: bytes) -> None:
                if path == PATH:
                    fake.generate(self, json.loads(body))
                else:
                    self.send(*fake.control(path, body))

        with listening(Handler) as address:
            yield address

    def control(self, path: str, body: bytes) -> tuple[Any, int]:
        """Its answer, and the HTTP status."""
        with self._samples:
            self.asked.append(path)
            if path == "/weight_info":
                return {"weight_version": self.stamp}, 200
            if path == "/start_weight_update" and self.unfinished:
                return {"detail": "start_weight_update called while a weight update is already active."}, 500
            self.unfinished = path == "/start_weight_update" or (self.unfinished and path != "/finish_weight_update")
            if path == "/pause":
                self._runs.clear()
            elif path == "/resume":
                self._runs.set()
            elif path == "/finish_weight_update" and body:
                self.pushes += 1
                self.stamp = json.loads(body)["weight_version"]
        return self.answers[path], 200

    def generate(self, request: Any, body: dict[str, Any]) -> None:
        sampling = body["sampling_params"]
        streams = body.get("stream", False)
        self.asked.append("stream" if streams else "probe" if body.get("priority") else "generate")
        if not streams:
            self._runs.wait()
            request.send({"choices": [self.choice(g, sampling["max_tokens"], True) for g in range(sampling["n"])]})
            return
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        try:
            number, ends = 0, False
            while not ends:
                number += 1
                ends = number >= sampling["max_tokens"] and self.pushes >= self.least_pushes
                for g in range(sampling["n"]):
                    self.sample(request, g, ends)
                time.sleep(0.005)
            self.write(request, "data: [DONE]\n\n")
            self.write(request, "")
        except OSError:
            self.gone += 1

    def sample(self, request: Any, g: int, ends: bool) -> None:
        while True:
            self._runs.wait()
            with self._samples:
                if self._runs.is_set():
                    self.write(request, f"data: {json.dumps({'choices': [self.choice(g, 1, ends)]})}\n\n")
                    return

    def choice(self, index: int, tokens: int, ends: bool) -> dict[str, Any]:
        return {
            "index": index,
            "token_ids": [FIRST_TOKEN + self.pushes - 1] * tokens,
            "logprobs": {"content": [{"logprob": -float(self.pushes)}] * tokens},
            "finish_reason": "length" if ends else None,
            "routed_experts": None,
        }

    @staticmethod
    def write(request: Any, text: str) -> None:
        data = text.encode()
        request.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        request.wfile.flush()
