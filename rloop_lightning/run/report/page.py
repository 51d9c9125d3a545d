"""Renders a page to one self-contained HTML file.

    write_page(path, "run.html.j2", sections=[...], ...)

Jinja2 escapes every value. Data for the scripts are JSON in which no character can end the element or begin markup. The
content security policy allows the page's own scripts by their checksums, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import rloop_lightning
from rloop_lightning.run.report.pictures import Picture
from rloop_lightning.run.report.tables import Table
from rloop_lightning.system.files import write_text

_ASSETS = Path(rloop_lightning.__file__).parent / "assets" / "report"
GENERATOR = '<meta name="generator" content="rloop-lightning">'
_HEAD = 2000  # characters in which it stands
_LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
_FLAG = re.compile(r"(--[a-z][\w.]*)")
_FOR_SCRIPTS = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


@dataclass
class Section:
    """A part of a page.

    Args:
        id: of the element on the page.
        title: its heading.
        notes: paragraphs below the heading.
        tables: its tables.
        pictures: its pictures; they stand side by side where there is room.
    """

    id: str
    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Args:
        title: of the page.
        sentence: what it is about.
        notes: remarks at the top.
        warnings: what a reader should not miss, and its first number; the section `warnings` tells more.
        sections: its parts, in order.
        explorer: data of the explorer; empty if the page has none.
        explorer_note: what the explorer leaves out.
        footer: the last line.
    """

    title: str
    sentence: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    warnings: Sequence[tuple[str, str]] = ()
    explorer: Sequence[Mapping[str, Any]] = ()
    explorer_note: str = ""
    footer: str = ""
    scripts: Sequence[str] = field(default=("pictures.js",))

    def html(self) -> str:
        """The page."""
        scripts = [_asset(name) for name in (*_LIBRARIES, *self.scripts)]
        pictures = {picture.id: picture.data() for section in self.sections for picture in section.pictures}
        return (
            _environment()
            .get_template("page.html.j2")
            .render(
                page=self,
                generator=Markup(GENERATOR),
                policy=_policy(scripts),
                style=Markup(_asset("report.css")),
                scripts=[Markup(script) for script in scripts],
                pictures=script_json(pictures),
                problems=script_json(list(self.explorer)),
            )
        )


def write_page(path: Path, page: Page) -> None:
    """Write a page, atomically.

    Raises:
        OSError: it can't be written.
    """
    write_text(path, page.html())


def is_page(path: Path) -> bool:
    """Whether a file is a page that this module wrote."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return GENERATOR in file.read(_HEAD)
    except OSError:
        return False


def script_json(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character of it ends the element or begins markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_FOR_SCRIPTS))


def _policy(scripts: Iterable[str]) -> str:
    """The content security policy of a page with these scripts."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    # The picture library writes style elements; styles alone can't load anything, since no other source is allowed.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def with_flags(text: str) -> Markup:
    """A text whose options, such as --algo.lr, are code."""
    parts = _FLAG.split(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(one) if place % 2 else one for place, one in enumerate(parts)
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_flags"] = with_flags
    return environment
