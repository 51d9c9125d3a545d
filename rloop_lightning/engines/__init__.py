"""The rollout engines by name: `--engine torch` is `ENGINES["torch"]`.

Class paths instead of classes, so that reading the names imports neither torch nor transformers. An engine of your own
needs no entry: `--engine my.module.MyEngine` works as it is.
"""

ENGINES: dict[str, str] = {
    "torch": "rloop_lightning.engines.torch_engine.TorchEngine",
}
"""Short name -> class path of a `RolloutEngine`."""
