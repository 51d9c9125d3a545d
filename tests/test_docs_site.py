"""The documentation site: its pages, its reference, and that a link that leads nowhere fails the build."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import rloop_lightning

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES: dict[str, str] = runpy.run_path(str(DOCS / "site_pages.py"))["PAGES"]


def site(folder: Path, pages: dict[str, str]) -> Any:
    """The settings of the project's site, for a site of other pages without a reference."""
    for name, text in pages.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(folder / "docs"),
        site_dir=str(folder / "site"),
        plugins=["search"],
        hooks=[],
        nav=list(pages),
        extra_css=[],
    )


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/-]+\.md)$", nav, flags=re.MULTILINE)
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages | {page for page in PAGES.values() if page.endswith(".md")})


def test_the_reference_has_every_public_name_once() -> None:
    pages = "".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
    assert sorted(re.findall(r"^::: rloop_lightning\.(\w+)$", pages, flags=re.MULTILINE)) == sorted(
        rloop_lightning.__all__
    )


def test_every_document_outside_docs_has_a_page() -> None:
    documents = [ROOT / "benchmarks" / "results.md", *ROOT.glob("*.md"), *(ROOT / "examples").rglob("README.md")]
    assert {path.relative_to(ROOT).as_posix() for path in documents} <= PAGES.keys()


def test_links_between_files_of_the_repository_lead_between_their_pages(tmp_path: Path) -> None:
    lead = runpy.run_path(str(DOCS / "site_pages.py"))["on_page_markdown"]

    def led(page: str, text: str) -> str:
        class File:
            src_uri = page

        class Page:
            file = File

        return lead(text, page=Page, config=None, files=None)

    assert led("index.md", "[a](docs/data.md#rows) ![b](docs/images/x.png)") == "[a](data.md#rows) ![b](images/x.png)"
    assert led("python.md", "[a](../examples/one_file.py) [b](data.md)") == "[a](examples/one_file.md) [b](data.md)"
    assert led("contributing.md", "[a](README.md#why) [b](#c)") == "[a](index.md#why) [b](#c)"
    preset = "rloop_lightning/configs/countdown.yaml"
    assert led("examples/gsm8k.md", f"[a](../../{preset}) [b](../../docs/data.md)") == (
        "[a](../configs/countdown.yaml) [b](../data.md)"
    )
    assert led("index.md", "[a](https://example.org/docs/x.md) [b](LICENSE)") == (
        "[a](https://example.org/docs/x.md) [b](LICENSE)"
    )


def test_sound_pages_build(tmp_path: Path) -> None:
    config = site(tmp_path, {"index.md": "# A\n\n## A `b` c\n\n[there](other.md#d-e)\n", "other.md": "# B\n\n## D e\n"})
    build(config)
    assert 'href="other.html#d-e"' in (tmp_path / "site" / "index.html").read_text()
    assert "fonts.g" not in (tmp_path / "site" / "index.html").read_text()  # Google's
    assert (tmp_path / "site" / "search" / "search_index.json").exists()


@pytest.mark.parametrize("link", ["missing.md", "other.md#missing", "#missing", "/other.md", "../LICENSE", "nowhere/"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str) -> None:
    config = site(tmp_path, {"index.md": f"# A\n\n[there]({link})\n", "other.md": "# B\n"})
    with pytest.raises(Abort):
        build(config)
