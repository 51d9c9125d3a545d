"""URLs of object stores: which ones the package takes, and where their local copies are.

    is_url("s3://bucket/train.jsonl")               a URL, rather than a path or a name
    url_faults("s3://bucket/run", "--out")          why it can't be used, before the store is asked
    cache_folder("runs", url)                       the local folder of a URL

Credentials come from where the store's own tools find them, such as `aws configure` or AWS_ACCESS_KEY_ID. A URL with
credentials in it is refused, because config.yaml would record it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from rloop_lightning.system.terminal import one_line

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY")
_SHORTEST_SECRET = 8  # characters; a shorter value of such a variable is none, and could be part of any word
_PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "s3": ("s3fs", "pip install 'rloop-lightning[s3]'"),
        "s3a": ("s3fs", "pip install 'rloop-lightning[s3]'"),
        "gs": ("gcsfs", "pip install 'rloop-lightning[gs]'"),
        "gcs": ("gcsfs", "pip install 'rloop-lightning[gs]'"),
        "az": ("adlfs", "pip install adlfs"),
        "abfs": ("adlfs", "pip install adlfs"),
        "file": ("", ""),
        "memory": ("", ""),
    }
)
"""By scheme: the package that fsspec needs for it, and how to install it. A new object of theirs appears whole."""


def is_url(text: str) -> bool:
    """Whether a text is a URL of any kind."""
    return _URL.match(text) is not None


def url_faults(url: str, flag: str) -> list[str]:
    """Why a URL can't be used, one message; the store is not asked.

    Args:
        flag: the option that has it as its value, for the message.
    """
    scheme = url.partition("://")[0].lower()
    place = f"{flag} {shown_url(url)}".strip()
    if scheme not in _PACKAGES:
        return [f"{place}: the scheme {one_line(scheme)}:// is not supported; take one of {_known()}, or a local path"]
    if _has_secrets(url):
        return [
            f"{place}: a URL must not hold credentials or a query, since config.yaml records it; give them as the "
            "store's own tools take them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, `aws configure`, "
            "GOOGLE_APPLICATION_CREDENTIALS)"
        ]
    if "::" in url:
        return [f"{place}: chained URLs are not supported; give the URL of the store itself"]
    if not _place_of(url).strip("/"):
        return [f"{place}: it names no place in the store; expected {scheme}://BUCKET/NAME"]
    if any(part in (".", "..") for part in _place_of(url).split("/")):
        return [f"{place}: '.' and '..' mean nothing in a store; write the path without them"]
    package, install = _PACKAGES[scheme]
    if package and find_spec(package) is None:
        return [f"{place}: {scheme}:// needs the package {package}; install it with: {install}"]
    return []


def local_only(value: str | None, flag: str) -> list[str]:
    """A message if the value of an option that takes a local path is a URL."""
    if value is None or not is_url(value):
        return []
    return [f"{flag} {shown_url(value)}: it takes a local path; copy the result to the store afterwards"]


def shown_url(url: str) -> str:
    """A URL for messages, without credentials and query."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    mark = rest[len(place) : len(place) + 1]
    host, slash, path = place.partition("/")
    host = f"...@{host.rpartition('@')[2]}" if "@" in host else host
    return one_line(f"{scheme}://{host}{slash}{path}{mark and f'{mark}...'}", limit=300)


def without_secrets(text: str) -> str:
    """A message of a store's client, without queries of URLs and without the credentials of the environment."""
    for name in _SECRETS:
        if len(value := os.environ.get(name, "")) >= _SHORTEST_SECRET:
            text = text.replace(value, "...")
    text = re.sub(r"(://)[^/\s@]*@", r"\1...@", text)
    return re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]*", r"\1...", text)


def name_of(url: str) -> str:
    """The last part of a URL's path."""
    return _place_of(url).rstrip("/").rpartition("/")[2]


def local_path(url: str) -> Path | None:
    """The path of a file:// URL; None for any other."""
    scheme, _, rest = url.partition("://")
    return Path(rest) if scheme.lower() == "file" else None


def cache_folder(kind: str, url: str) -> Path:
    """The local folder of a URL: in RLOOP_CACHE, else in rloop-lightning in the user's cache folder.

    Args:
        kind: `runs`, where runs work, or `fetched`, for copies that are only read.
    """
    url = url.rstrip("/")
    chosen, given = os.environ.get("RLOOP_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    usual = (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "rloop-lightning"
    top = Path(chosen).expanduser().absolute() if chosen else usual
    return top / kind / hashlib.sha256(url.encode()).hexdigest()[:16] / (name_of(url) or "root")


def _place_of(url: str) -> str:
    return url.partition("://")[2]


def _has_secrets(url: str) -> bool:
    # A '?' or '#' may be part of an object's name, but a signed URL looks just the same.
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return bool(parts.query or parts.fragment or "@" in parts.netloc)


def _known() -> str:
    return ", ".join(f"{scheme}://" for scheme in _PACKAGES)
