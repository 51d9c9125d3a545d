"""A side of continuous_batching.py: TorchEngine, or transformers' continuous batching.

The only argument is a JSON object: engine ("torch" or "generate_batch"), model, device, dtype, prompts (text),
rollouts, max_new_tokens, max_rows. For each line on stdin, the script generates once and answers with a line of JSON:
seconds, lengths and the peak memory in bytes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.measure import now, peak_bytes
from rloop_lightning.engines.torch_engine import TorchEngine
from rloop_lightning.model.loading import load_tokenizer
from rloop_lightning.model.policy import Policy
from rloop_lightning.types import Problem

_PAGE_TOKENS = 256


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    generate = {"torch": torch_engine, "generate_batch": generate_batch}[request["engine"]](request)
    for number, _ in enumerate(sys.stdin):
        started = now(request["device"])
        lengths = generate(number)
        answer = {
            "seconds": now(request["device"]) - started,
            "lengths": lengths,
            "peak_bytes": peak_bytes(request["device"]),
        }
        print(json.dumps(answer), file=answers, flush=True)


def torch_engine(request: dict[str, Any]) -> Callable[[int], list[int]]:
    """Our engine, whichever checkout this is."""
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, request["dtype"]))
    policy = Policy(model, load_tokenizer(request["model"])).to(request["device"])
    engine = TorchEngine(max_new_tokens=request["max_new_tokens"], max_rows=request["max_rows"])
    engine.bind(policy)
    problems = [Problem(id=f"p{i}", prompt=prompt, answer="") for i, prompt in enumerate(request["prompts"])]

    def generate(number: int) -> list[int]:
        return [one.length for one in engine.generate(problems, request["rollouts"], engine.sampling(number))]

    return generate


def generate_batch(request: dict[str, Any]) -> Callable[[int], list[int]]:
    """Transformers' `generate_batch`."""
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, request["dtype"]))
    model = model.to(request["device"]).eval()
    tokenizer = load_tokenizer(request["model"])
    prompts = [
        tokenizer.encode(prompt, add_special_tokens=False)
        for prompt in request["prompts"]
        for _ in range(request["rollouts"])
    ]
    sampling = GenerationConfig(
        max_new_tokens=request["max_new_tokens"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
    )
    # By default its cache takes most of the machine's memory: 15 GB for a model of 40,000 weights.
    longest = max(map(len, prompts)) + request["max_new_tokens"]
    batching = ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        num_blocks=request["max_rows"] * (longest // _PAGE_TOKENS + 2),
        max_batch_tokens=2048,
        max_requests_per_batch=request["max_rows"],
        return_logprobs=True,
    )

    def generate(number: int) -> list[int]:
        torch.manual_seed(number)
        outputs = model.generate_batch(
            prompts, generation_config=sampling, continuous_batching_config=batching, persistent_manager=True
        )
        return [len(output.generated_tokens) for output in outputs.values()]

    return generate


if __name__ == "__main__":
    main()
