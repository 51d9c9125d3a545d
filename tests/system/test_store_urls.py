"""Which URLs are taken, and that no message shows a credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from rloop_lightning.system import store_urls
from rloop_lightning.system.store_errors import reason_of
from rloop_lightning.system.store_urls import cache_folder, is_url, local_only, name_of, shown_url, url_faults


@pytest.mark.parametrize("text", ["s3://bucket/x", "GS://bucket", "memory://x", "file:///x", "x+y://z"])
def test_a_url_is_known_by_its_scheme(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["train.jsonl", "org/name", "/a/b", "C:/x", "s3:/bucket/x", "name:config:split", ""])
def test_paths_and_names_are_no_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://host/x", "--out ftp://host/x: the scheme ftp:// is not supported; take one of s3://"),
        ("memory://", "--out memory://: it names no place in the store; expected memory://BUCKET/NAME"),
        ("memory://a/../b", "'.' and '..' mean nothing in a store"),
        ("memory://a::file:///x", "chained URLs are not supported"),
        ("s3://key:hidden@bucket/x", "--out s3://...@bucket/x: a URL must not hold credentials"),
        ("s3://bucket/x?X-Amz-Signature=hidden", "--out s3://bucket/x?...: a URL must not hold credentials"),
        ("s3://bucket/x#hidden", "a URL must not hold credentials"),
    ],
)
def test_a_url_that_can_t_be_used_gets_one_message_without_secrets(url: str, expected: str) -> None:
    (fault,) = url_faults(url, "--out")
    assert expected in fault
    assert "hidden" not in fault


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_urls, "find_spec", lambda name: None)
    assert url_faults("gs://bucket/x", "--data") == [
        "--data gs://bucket/x: gs:// needs the package gcsfs; install it with: pip install 'rloop-lightning[gs]'"
    ]
    assert url_faults("memory://bucket/x", "--data") == []


def test_messages_of_clients_lose_queries_and_the_credentials_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    told = reason_of(OSError("GET https://me:hidden@host/x?sig=hidden failed, signed with hidden-secret"))
    assert "hidden" not in told
    assert "GET https://...@host/x?... failed" in told


def test_a_refusal_names_what_to_check() -> None:
    assert "AWS_ACCESS_KEY_ID" in reason_of(PermissionError("Access Denied"))
    assert "check the URL" in reason_of(FileNotFoundError("x"))
    assert "RLOOP_CACHE" in reason_of(OSError(28, "No space left on device"))


def test_a_url_has_one_local_folder_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLOOP_CACHE", str(tmp_path))
    folder = cache_folder("runs", "s3://bucket/a/run")
    assert folder == cache_folder("runs", "s3://bucket/a/run/")
    assert folder != cache_folder("runs", "s3://bucket/b/run")
    assert folder.name == name_of("s3://bucket/a/run/") == "run"
    assert folder.is_relative_to(tmp_path / "runs")


def test_an_option_of_a_local_path_refuses_a_url() -> None:
    assert local_only("runs/x", "--out") == local_only(None, "--out") == []
    assert local_only("s3://bucket/x?key", "--out") == [
        "--out s3://bucket/x?...: it takes a local path; copy the result to the store afterwards"
    ]
    assert shown_url("s3://bucket/x\n") == "s3://bucket/x\\n"
