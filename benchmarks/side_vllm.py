"""vLLM's side of generate_vs_hf.py. Its interpreter has vLLM and does not need this project.

The only argument is a JSON object: model, dtype, device, prompts (token ids), rollouts, max_new_tokens, stop_token_ids.
For each line on stdin, the script generates once and answers with a line of JSON: seconds and lengths.
"""

import json
import os
import sys
import time

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # otherwise the logprobs compile on first use
}
CPU_CACHE_BYTES = 256 << 20


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.update(SETTINGS)
    from vllm import LLM, SamplingParams

    request = json.loads(sys.argv[1])
    on_cpu = request["device"] == "cpu"
    llm = LLM(
        request["model"],
        dtype=request["dtype"],
        max_model_len=max(map(len, request["prompts"])) + request["max_new_tokens"],
        skip_tokenizer_init=True,
        logprobs_mode="processed_logprobs",
        enforce_eager=on_cpu,  # compiling takes half a minute at every start of a training loop
        **({"kv_cache_memory_bytes": CPU_CACHE_BYTES} if on_cpu else {"gpu_memory_utilization": 0.5}),
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    for _ in sys.stdin:
        sampling = [
            SamplingParams(  # without a seed: with one, the CPU build can't split a long batch of prompts
                n=request["rollouts"],
                max_tokens=request["max_new_tokens"],
                temperature=1.0,
                logprobs=0,  # the sampled token's logprob, as in ours
                ignore_eos=True,
                stop_token_ids=request["stop_token_ids"],
                detokenize=False,
            )
            for _ in prompts
        ]
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        lengths = [len(completion.token_ids) for output in outputs for completion in output.outputs]
        print(json.dumps({"seconds": seconds, "lengths": lengths}), file=answers, flush=True)


if __name__ == "__main__":
    main()
