"""The Hugging Face hub: whether it answers, determined once and quickly, and uploads to it.

    hub_answers()                         whether names on the hub can be fetched
    hub_file("Qwen/Qwen2.5-0.5B", "README.md")
    push_faults(config)                   why an upload would fail, before a run spends hours on what it would upload
    push_folder(folder, config)           the upload; returns the address of the repository

The hub's clients retry a server that does not answer for half a minute or more before they use cached files. The token
is the one of `hf auth login` or of HF_TOKEN: no option takes it, so that no settings file and no process list shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from rloop_lightning.errors import PushError
from rloop_lightning.system.terminal import one_line

_PATIENCE_S = 3.0
_ACCOUNT_PATIENCE_S = 10.0
_REPOSITORY = re.compile(r"\w[\w.-]*/\w([\w.-]{0,94}\w)?", re.ASCII)
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.spm", "*.tiktoken", "*.safetensors")
"""Patterns of the files that a model and its tokenizer are loaded from."""
_SHADOWING = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""Files of an earlier upload that would shadow the new weights, if these are in fewer or other files."""


@dataclass(frozen=True)
class HubConfig:
    """The upload of the final policy to the Hugging Face hub. Log in with `hf auth login`, or set HF_TOKEN.

    Args:
        push: upload the folder `final` to this repository, OWNER/NAME, at the end of the run; null uploads nothing. The
            repository is created if it does not exist.
        private: make the repository private if the upload creates it.
    """

    push: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        if self.push is not None and (fault := _name_fault(self.push)):
            raise ValueError(f"--hub.push {one_line(self.push)}: {fault}")


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
    return f"{_why_unreachable()}, so that only what was fetched earlier can be used"


def hub_file(repository: str, name: str) -> Path | None:
    """A file of a model on the hub, fetched or fetched earlier; None if it can't be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, local_files_only=not hub_answers()))
    except Exception:  # a missing file, a gated repository and no network share no base class
        return None


def fetched_revision(repository: str, name: str) -> str:
    """The commit of a fetched file of a model, in its repository's top folder; empty if it was not fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name)
    return Path(found).parent.name if isinstance(found, str) else ""


def fetched_folder(repository: str, patterns: Sequence[str]) -> Path:
    """A folder with those files of a model on the hub whose names fit a pattern, fetched or fetched earlier.

    Raises:
        Exception: of the hub's client, if they can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=not hub_answers()))
    finally:
        enable_progress_bars()


def push_faults(config: HubConfig, *, recorded: bool = False) -> list[str]:
    """Why an upload would fail, one message each. Takes a few seconds at most; empty if there is nothing to upload.

    Args:
        config: the upload.
        recorded: it is one of a run that resumes, so that no option can be left out.
    """
    if config.push is None:
        return []
    from huggingface_hub import get_token

    flag, token = f"--hub.push {config.push}", get_token()
    if token is None:
        return [f"{flag}: no token; run `hf auth login`, or set HF_TOKEN to a token that may write"]
    if not hub_answers():
        advice = "" if recorded else f"; leave the option out, and push later with --resume RUN {flag}"
        return [f"{flag}: {_why_unreachable()}{advice}"]
    account = _account(token)
    faults = [account] if isinstance(account, str) else _account_faults(account, config)
    return [f"{flag}: {fault}" for fault in faults]


def push_folder(folder: Path, config: HubConfig) -> str:
    """Upload a folder to the repository of `config.push`, which must not be None. Returns its address.

    What an earlier upload left there stays, except for its weights and the settings of its adapter. Folders there are
    not touched. Files that have not changed are not sent again.

    Raises:
        PushError: the hub refuses, or can't be reached.
    """
    from huggingface_hub import HfApi

    assert config.push is not None
    api = HfApi()
    try:
        repository = api.create_repo(config.push, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message=f"Upload {folder.name}",
            delete_patterns=[escape(name) for name in _stale(api.list_repo_files(repository.repo_id), folder)],
        )
    except Exception as error:  # HTTP, connection, certificate and validation errors share no base class
        reason = one_line(" ".join(str(error).split()) or type(error).__name__, limit=300)
        raise PushError(f"--hub.push {config.push}: {folder} could not be uploaded: {reason}") from error
    return str(repository)


def _stale(names: Sequence[str], folder: Path) -> list[str]:
    """Of the files in a repository, those of its top folder that would shadow the weights in a folder."""
    there = [name for name in names if "/" not in name and any(fnmatchcase(name, one) for one in _SHADOWING)]
    return [name for name in there if not (folder / name).exists()]


def _why_unreachable() -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return f"{constants.ENDPOINT} doesn't answer"


def _name_fault(name: str) -> str:
    """Why a name can't be that of a repository; empty if it can."""
    if name.count("/") != 1:
        return "expected OWNER/NAME, where OWNER is your account or an organisation"
    if not _REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        return (
            "the hub allows letters, digits, '-', '_' and '.', at most 96 characters, without '--' and '..', and no "
            "'-' or '.' at the ends"
        )
    return ""


def _account(token: str) -> Mapping[str, Any] | str:
    """The account of a token as the hub describes it, or why there is none."""
    from huggingface_hub import constants, get_session

    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=_ACCOUNT_PATIENCE_S,
        )
        account = answer.json() if answer.status_code == 200 else {}
    except Exception as error:  # as in `hub_answers`, and answers that are not JSON
        return f"{constants.ENDPOINT} doesn't say whose token this is: {one_line(str(error), limit=200)}"
    if answer.status_code == 401:
        return f"{constants.ENDPOINT} refuses the token; run `hf auth login` again, or set HF_TOKEN to a valid token"
    if not isinstance(account, dict) or not isinstance(account.get("name"), str):
        return f"{constants.ENDPOINT} doesn't say whose token this is (status {answer.status_code}); try again later"
    return account


def _account_faults(account: Mapping[str, Any], config: HubConfig) -> list[str]:
    """Why this account can't write to the repository."""
    assert config.push is not None
    owner, _, name = config.push.partition("/")
    owners = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    if owner not in owners:
        return [f"your account can't write there; name one of {', '.join(f'{mine}/{name}' for mine in owners)}"]
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return ["the token may only read; make one that may write at https://huggingface.co/settings/tokens"]
    return []
