"""The rollout engines by short name: `--engine torch` is `ENGINES["torch"]`.

Class paths are strings, so that listing the names imports neither torch nor transformers. Your own engine needs no
entry: use `--engine my.module.MyEngine`.
"""

ENGINES: dict[str, str] = {
    "torch": "rloop_lightning.engines.torch_engine.TorchEngine",
    "vllm": "rloop_lightning.engines.vllm.engine.VLLMEngine",
}
"""Short name -> class path of a `RolloutEngine`."""
