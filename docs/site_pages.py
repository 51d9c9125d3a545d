"""Pages of the site from files outside docs/, and links between all of them (a hook of mkdocs.yml).

The files link to each other as they do on GitHub. Here, links to a file that has a page lead to the page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results.md": "benchmarks.md",
    "examples/README.md": "examples/index.md",
    "examples/custom_reward.py": "examples/custom_reward.md",
    "examples/first_run.ipynb": "examples/first_run.ipynb",
    "examples/gsm8k/README.md": "examples/gsm8k.md",
    "examples/one_file.py": "examples/one_file.md",
    "examples/rloop-lightning-rloo/README.md": "examples/rloop-lightning-rloo.md",
    **{f"rloop_lightning/configs/{preset.name}": f"configs/{preset.name}" for preset in (ROOT / "configs").iterdir()},
}
"""Pages and other files of the site, by their path in the repository."""

_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".py"):
            text = f"# {Path(source).name}\n\n```python\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def lead(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        there = PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        return found[1] if there is None else posixpath.relpath(there, posixpath.dirname(here) or ".")

    return _LINK.sub(lead, markdown)
