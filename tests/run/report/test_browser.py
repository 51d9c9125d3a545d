"""Pages in headless Chromium: hostile text does nothing, nothing is requested, and everybody can use them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from browser import Chromium, OpenPage, chromium
from reported import rollout, training_rows, with_seed, write_pool, write_run

from rloop_lightning.run.report.compared import in_arms
from rloop_lightning.run.report.comparison_page import write_comparison_page
from rloop_lightning.run.report.run_page import write_report
from rloop_lightning.run.report.stored import ReportedRun, read_run

AXE = Path(__file__).resolve().parents[2] / "helpers" / "axe.min.js"

if chromium() is None and os.environ.get("CI"):
    pytest.fail("CI needs Chromium for the tests of report.html: apt-get install chromium (.ci/run)", pytrace=False)
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium: install Debian's package chromium to test report.html in a browser"
)

HACK = "window.hacked = true"
HOSTILE = {
    "a script": f"<script>{HACK}</script>",
    "an end of the data": f"</script><script>{HACK}</script><!--",
    "an event": f'<img src=x onerror="{HACK}"><svg onload="{HACK}">',
    "a link": f'<a href="javascript:{HACK}">click</a> [click](javascript:{HACK})',
    "a request": "<img src='https://example.org/x.png'><link rel=stylesheet href=//example.org/x.css>",
    "a frame": "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe><base href='//example.org'>",
    "a template": "{{ 7 * 7 }}{% raw %} ${7*7} \\u003cscript\\u003e",
    "bidi controls": "safe \u202egnp.exe\u202c \u2066x\u2069 \u200f\u061c",
    "separators": "a\u2028b\u2029c\x00d\x1b[31me\x7f\ud800",
    "a long line": "x" * 1_000_000 + "END",
    "long words": "\u0628" * 5000 + " " + "W" * 3000,
}
PROTOTYPE = "__proto__"


def hostile_run(out: Path) -> ReportedRun:
    """A run in which every text of others is hostile."""
    for step in (1, 2, 3):
        rollouts = [
            rollout(problem.encode(errors="replace").decode(), right=right, text=problem, step=step)
            for problem in (*HOSTILE.values(), PROTOTYPE)
            for right in (True, False)
            if len(problem) < 1000
        ]
        rollouts += [rollout("texts", right=bool(place % 2), text=text) for place, text in enumerate(HOSTILE.values())]
        rollouts += [rollout(f"long {place}", right=True, text=HOSTILE["a long line"]) for place in range(3)]
        write_pool(out, 0, step, rollouts)
    counts = {"base": [1, 2, 3], "round 1 explored": [2, 2, 3], "round 1 consolidated": [2, 3, 3]}
    names = [HOSTILE["a script"], HOSTILE["an event"]]
    write_run(
        out,
        successes=counts,
        names=names,
        rows=training_rows(rollout__reward_mean=[0.1] * 6, **{f"rollout__{HOSTILE['a link']}": [1.0] * 6}),
        loop={"rounds": 1},
        data={"name": HOSTILE["an event"]},
        policy={"model": HOSTILE["an end of the data"]},
        engine={"stop": list(HOSTILE.values())},
    )
    return read_run(out, lambda ids: {name: (f"{name} {HOSTILE['a script']}", HOSTILE["an event"]) for name in ids})


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as started:
        yield started


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "<b onmouseover=alert(1)>run"
    write_report(hostile_run(folder), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything that a page can have."""
    out = tmp_path_factory.mktemp("ordinary") / "run"
    for round_number in (0, 1):
        for step in (1, 5, 10):
            rollouts = [
                rollout(f"problem {number}", right=place < number % 5, step=step + place)
                for number in range(70)
                for place in range(4)
            ]
            write_pool(out, round_number, step, rollouts)
    norms = [1.0] * 15 + [80.0] * 5
    return report_of(ordinary_run(out, norms))


def ordinary_run(out: Path, norms: list[float]) -> Path:
    explored, consolidated = [8] * 6 + [0] * 14, [4] * 8 + [1] * 12
    return write_run(
        out,
        successes={
            "base": [1] * 20,
            "round 1 explored": explored,
            "round 1 consolidated": consolidated,
            "round 2 explored": explored,
            "round 2 consolidated": consolidated,
        },
        metrics={"round 1 consolidated": {"expert/rollouts": 3.0}},
        rows=training_rows(
            rollout__reward_mean=[0.1 * place for place in range(20)],
            grad__norm_preclip_max=norms,
            policy__entropy_nats=[0.3] * 20,
            rollout__length_tokens=[30.0] * 20,
            rollout__truncated_rate=[0.2] * 20,
            time__generate_s=[1.0] * 20,
        ),
    )


def report_of(out: Path) -> Path:
    prompts = {f"problem {place}": (f"What is {place}?", str(place)) for place in range(70)}

    def read(ids: object) -> Mapping[str, tuple[str, str]]:
        return prompts

    write_report(read_run(out, read), out / "report.html")
    return out / "report.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    runs = [with_seed(ordinary_run(folder / f"rloop-{seed}", [1.0] * 20), seed) for seed in (0, 1)]
    plain = {"base": [1] * 20, "round 1 explored": [8] * 6 + [0] * 14}
    rows = training_rows(rollout__reward_mean=[0.2] * 20)
    for seed in (0, 1):
        out = write_run(folder / f"dapo-{seed}", successes=plain, rows=rows, consolidate={"name": "none"})
        runs.append(with_seed(out, seed))
    write_comparison_page(in_arms([read_run(out) for out in runs]), folder / "comparison.html")
    return folder / "comparison.html"


def violations(page: OpenPage) -> list[str]:
    """What axe-core finds wrong."""
    page.evaluate(f"{AXE.read_text(encoding='utf-8')};0")
    found = page.evaluate(
        "axe.run(document).then((done) => done.violations.map((one) => "
        "[one.id, ...one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]))"
    )
    return [json.dumps(one) for one in found]


def choose(page: OpenPage, beginning: str) -> None:
    """Choose the problem whose name begins so."""
    buttons = "[...document.querySelectorAll('#problem-list button')]"
    page.evaluate(f"{buttons}.find((one) => one.textContent.startsWith({json.dumps(beginning)})).click()")


def assert_quiet(page: OpenPage) -> None:
    """Nothing was requested, and nothing went wrong."""
    assert page.requests == []
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["ordinary", "compared", "hostile"])
def test_pages_are_quiet_fit_their_width_and_have_no_barrier(
    browser: Chromium, request: pytest.FixtureRequest, name: str, width: int, dark: bool
) -> None:
    page = browser.open(request.getfixturevalue(name), width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    count = "(one) => one.querySelectorAll('svg').length"
    drawn = page.evaluate(f"[...document.querySelectorAll('[data-picture]')].map({count})")
    assert drawn
    assert set(drawn) == {1}
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert violations(page) == []
    assert_quiet(page)


def test_nothing_of_a_hostile_run_does_anything(browser: Chromium, hostile: Path) -> None:
    page = browser.open(hostile)
    count = page.evaluate("document.querySelectorAll('#problem-list button').length")
    assert count == len([one for one in HOSTILE.values() if len(one) < 1000]) + 5
    for place in range(count):
        page.evaluate(f"document.querySelectorAll('#problem-list button')[{place}].click()")
        page.evaluate("[...document.querySelectorAll('#detail input')].slice(0, 2).forEach((box) => box.click())")
        assert page.evaluate("document.querySelectorAll('#detail pre').length") >= 2
    for tag in ("img", "iframe", "link", "base", "a[href^='javascript']", "[onload], [onerror], [onmouseover]"):
        assert page.evaluate(f"document.querySelectorAll({json.dumps(tag)}).length") == 0, tag
    assert page.evaluate("document.querySelectorAll('script').length") == 6
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("'polluted' in {}") is False
    assert_quiet(page)


def test_hostile_texts_are_shown_as_they_are_with_controls_escaped(browser: Chromium, hostile: Path) -> None:
    page = browser.open(hostile)
    choose(page, "texts")
    # The explorer shows the first right and wrong rollouts of a step.
    shown = page.evaluate("[...document.querySelectorAll('#detail pre')].map((one) => one.textContent)")
    assert HOSTILE["a script"] in shown
    assert HOSTILE["an end of the data"] in shown
    ids = page.evaluate("[...document.querySelectorAll('#problem-list .name')].map((one) => one.textContent)")
    assert "safe \\u202egnp.exe\\u202c \\u2066x\\u2069 \\u200f\\u061c" in ids
    assert "{{ 7 * 7 }}{% raw %} ${7*7} \\u003cscript\\u003e" in ids
    controls = r"/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/"
    assert page.evaluate(f"{controls}.test(document.documentElement.textContent)") is False


def test_a_long_line_is_cut_in_its_middle_and_keeps_its_end(browser: Chromium, hostile: Path) -> None:
    assert hostile.stat().st_size < 2_000_000
    page = browser.open(hostile, width=390)
    choose(page, "long 0")
    text = page.evaluate("document.querySelectorAll('#detail pre')[1].textContent")
    assert text.endswith("xEND")
    assert "[... 996,003 characters left out ...]" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_even_markup_in_the_page_could_not_run_or_load_anything(
    browser: Chromium, ordinary: Path, tmp_path: Path
) -> None:
    """The content security policy holds where escaping would fail."""
    broken = tmp_path / "broken.html"
    inside = f"<main><script>{HACK}</script><img src='https://example.org/x.png' onerror='{HACK}'>"
    broken.write_text(ordinary.read_text(encoding="utf-8").replace("<main", inside + "<main", 1), encoding="utf-8")
    page = browser.open(broken)
    assert page.evaluate("window.hacked") is None
    assert len([error for error in page.errors if "Content Security Policy" in error]) >= 2


def test_the_explorer_searches_filters_and_orders(browser: Chromium, ordinary: Path) -> None:
    page = browser.open(ordinary)
    shown = "[...document.querySelectorAll('#problem-list .name')].map((one) => one.textContent)"

    def enter(field: str, value: str) -> list[str]:
        page.evaluate(f"{field}.value = {value!r}; {field}.dispatchEvent(new Event('input'))")
        return page.evaluate(shown)

    assert page.evaluate("document.getElementById('count').textContent") == "70 of 70 problems"
    assert len(page.evaluate(shown)) == 60
    page.evaluate("document.getElementById('more').click()")
    assert len(page.evaluate(shown)) == 70
    assert enter("search", "What is 31?") == ["problem 31"]
    assert enter("search", "problem 12 at step 1: yes")[0] == "problem 12"
    enter("search", "")
    rates = {f"problem {place}": place % 5 / 4 for place in range(70)}
    page.evaluate("document.getElementById('more').click()")
    assert set(enter("least", "50")) == {name for name, rate in rates.items() if rate >= 0.5}
    assert set(enter("most", "50")) == {name for name, rate in rates.items() if rate == 0.5}
    enter("least", "0"), enter("most", "100")
    easiest = enter("order", "high")
    assert rates[easiest[0]] == 1
    assert_quiet(page)


def test_the_explorer_shows_verdicts_in_words_and_signs_and_what_differs(browser: Chromium, ordinary: Path) -> None:
    page = browser.open(ordinary)
    page.evaluate("search.value = 'problem 32'; search.dispatchEvent(new Event('input'))")
    page.evaluate("document.querySelector('#problem-list button').click()")
    detail = page.evaluate("document.getElementById('detail').innerText")
    assert "12 of 24 rollouts are right, 50 %." in detail
    assert "What is 32?" in detail
    assert "Round 2, step 10: 2 of 4 right" in detail
    verdicts = page.evaluate("[...document.querySelectorAll('#detail .verdict')].map((one) => one.textContent)")
    assert verdicts[:4] == ["✓ right", "✓ right", "✗ wrong", "✗ wrong"]
    page.evaluate("[0, 2].forEach((place) => document.querySelectorAll('#detail input')[place].click())")
    removed = page.evaluate("[...document.querySelectorAll('.difference del')].map((one) => one.textContent)")
    added = page.evaluate("[...document.querySelectorAll('.difference ins')].map((one) => one.textContent)")
    assert (removed, added) == (["1", "yes"], ["3", "no"])
    assert_quiet(page)


def test_the_explorer_is_used_by_keyboard(browser: Chromium, ordinary: Path) -> None:
    page = browser.open(ordinary)
    page.evaluate("document.getElementById('order').focus()")
    focused = (
        "document.activeElement.closest('#problem-list') && document.activeElement.querySelector('.name').textContent"
    )
    for _ in range(4):
        page.press("Tab")
        if page.evaluate(focused):
            break
    first = page.evaluate(focused)
    page.press("ArrowDown")
    second = page.evaluate(focused)
    assert first != second
    page.press("Enter")
    assert page.evaluate("document.getElementById('problem-name').textContent") == second
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    page.press("ArrowUp")
    assert page.evaluate(focused) == first


def test_a_page_prints(browser: Chromium, ordinary: Path) -> None:
    printed = browser.open(ordinary).print_pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") >= 3
