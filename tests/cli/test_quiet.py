"""What libraries log and warn of themselves stays out of the terminal; what concerns the user's own code stays."""

from __future__ import annotations

import logging
import warnings

import pytest

from rloop_lightning.cli.quiet import quiet_lightning


def test_warnings_about_the_libraries_own_code_are_hidden_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_lightning():
            for module in ("torch.utils._pytree", "lightning.pytorch.trainer.trainer", "transformers", "my_reward"):
                warnings.warn_explicit(f"of {module}", FutureWarning, "file.py", 1, module=module)
            warnings.warn_explicit("GPU available but not used. Set it", UserWarning, "f.py", 1, module="lightning")
            warnings.warn_explicit("this may be slow", UserWarning, "f.py", 1, module="lightning.pytorch")
    assert [str(warning.message) for warning in caught] == ["of my_reward", "this may be slow"]


def test_lightnings_adverts_are_hidden_and_its_warnings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with quiet_lightning():
        log.info("Tip: install this")
        log.warning("a warning")
    assert [record.message for record in caplog.records] == ["a warning"]
