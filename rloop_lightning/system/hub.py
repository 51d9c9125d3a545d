"""Whether the Hugging Face hub can be asked at all, found out once and quickly.

Its clients try a server that doesn't answer again and again, for half a minute or more, before they look for what they
fetched earlier.
"""

from __future__ import annotations

from functools import cache

_PATIENCE_S = 3.0


@cache
def hub_answers() -> bool:
    """Whether the hub answers, whatever it says; asked once in a process. Never, where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception:  # whatever the client of the day raises for names, connections, proxies and certificates
        return False
    return True


def unreachable_hub() -> str:
    """Why names of the hub mean only what was fetched earlier."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, so that only what was fetched earlier can be used"
    return f"{constants.ENDPOINT} doesn't answer, so that only what was fetched earlier can be used"
