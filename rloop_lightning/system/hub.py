"""Whether the Hugging Face hub answers, determined once and quickly.

The hub's clients retry a server that does not answer for half a minute or more before they use cached files.
"""

from __future__ import annotations

from functools import cache

_PATIENCE_S = 3.0


@cache
def hub_answers() -> bool:
    """Whether the hub gives any answer. Asked once per process; false without asking if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception:  # DNS, connection, proxy and certificate errors differ between client versions
        return False
    return True


def unreachable_hub() -> str:
    """Why only what was fetched earlier can be used."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so that only what was fetched earlier can be used"
    return f"{constants.ENDPOINT} doesn't answer, so that only what was fetched earlier can be used"
