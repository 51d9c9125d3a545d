"""What every process of killing.py would import: imported once, by the fork server, and kept from its garbage search.

Objects that are frozen are not looked through by a child's collector, so that their memory stays shared.
"""

import gc
import importlib

for _module in (
    "math_verify",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pyarrow.parquet",
    "rloop_lightning.cli.main",
    "rloop_lightning.engines.torch_engine",
    "rloop_lightning.rewards.countdown",
    "rloop_lightning.rewards.weighted",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
):
    importlib.import_module(_module)

gc.collect()
gc.freeze()
