"""The math reward against hand-made tables, public verifier cases and plain math-verify."""

import copy
import json
import logging
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import math_verify
import pytest
import torch
from builders import RankData, ScoringDAPO, fit, make_policy, random_batch
from lightning.pytorch.strategies import DDPStrategy
from shared_data import shared, shared_rows

from rloop_lightning.data.files import ProblemFiles
from rloop_lightning.rewards import math as math_reward
from rloop_lightning.rewards.extraction import extract, last_answer
from rloop_lightning.rewards.math import MathReward
from rloop_lightning.rewards.workers import Outcome
from rloop_lightning.types import Problem, Scored

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rewards():
    """One reward for each way to extract, with their workers."""
    made = {extract: MathReward(extract=extract, workers=1) for extract in ("auto", "box", "last")}
    yield made
    for reward in made.values():
        reward.close()


def make_problems(*golds):
    return [Problem(id=f"p{i}", prompt="", answer=gold) for i, gold in enumerate(golds)]


def ask(reward, *pairs):
    golds, texts = zip(*pairs, strict=True)
    return reward.rewards(make_problems(*golds), texts)


_COUNTS = ("checked", "cached", "timed_out", "crashed", "unparsable")
RIGHT = [
    ("80", "A: 80"),
    ("80", r"so it is \boxed{80}."),
    ("1234567", r"\boxed{1,234,567}"),
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    (r"\frac{1}{2}", "the answer is 1/2"),
    ("0.5", r"$\frac12$"),
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"),
    ("(x-1)(x+1)", r"\boxed{x^2-1}"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"\{1,2,3\}", r"\boxed{\{3,2,1\}}"),
    ("1,2,3", r"\boxed{3, 1, 2}"),
    ("2,3", r"\boxed{3,2}"),  # a list
    ("1,22", r"1.22"),  # a decimal comma
    ("[0,1)", r"\boxed{[0, 1)}"),
    (r"(-\infty, 2]", r"$x \in (-\infty, 2]$"),
    (r"[0,1]\cup[2,3]", r"\boxed{[2,3] \cup [0,1]}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}"),
    ("x=3", r"\boxed{3}"),
    ("5", r"\boxed{x = 5}"),
    ("x+y=2", r"\boxed{y + x = 2}"),
    (r"28\%", r"\boxed{28\%}"),
    (r"28\%", r"\boxed{0.28}"),
    (r"5\text{ cm}", r"\boxed{5}"),
    ("5", r"\boxed{5\text{ cm}}"),
    (r"\$10", r"\boxed{10}"),
    (r"\frac{270}7\text{ degrees}", r"\boxed{\frac{270}{7}}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
    ("3+4i", r"\boxed{4i+3}"),
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}"),
]
WRONG = [
    ("80", ""),
    ("80", "no number at all"),
    ("80", r"\boxed{}"),
    ("80", r"\boxed{81}"),
    ("80", r"80 is tempting, but \boxed{8}"),
    (r"\frac{1}{2}", r"\boxed{0.51}"),
    ("[0,1)", r"\boxed{[0,1]}"),
    ("4,12,2", r"\boxed{10, 4, 2}"),
    (r"(1,2)", r"\boxed{(2,1)}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\\4&3\end{pmatrix}}"),
    ("x+y=2", r"\boxed{x-y=2}"),
    ("x", r"\boxed{y}"),
    (r"28\%", r"\boxed{27\%}"),
    (r"\text{Evelyn}", r"\boxed{\text{Evan}}"),
]


def test_right_and_wrong_answers(rewards):
    assert [pair for pair, reward in zip(RIGHT, ask(rewards["auto"], *RIGHT), strict=True) if reward != 1.0] == []
    assert [pair for pair, reward in zip(WRONG, ask(rewards["auto"], *WRONG), strict=True) if reward != 0.0] == []


@pytest.mark.parametrize(
    ("extract", "gold", "text", "expected"),
    [
        ("box", "7", r"first \boxed{3}, then \boxed{7}", 1.0),
        ("box", "3", r"first \boxed{3}, then \boxed{7}", 0.0),
        ("box", "7", "the answer is 7", 0.0),  # no box
        ("box", "7", r"\boxed{7", 0.0),
        ("box", r"\frac{270}7\text{ degrees}", r"\boxed{\frac{270}7\text{ degrees}}", 1.0),
        ("last", "80", "100/5 = 20\nA: 80\n\n", 1.0),
        ("last", "20", "100/5 = 20\nA: 80", 0.0),
        ("last", "1234", "#### 1,234", 1.0),
        ("last", "18", "That makes $18 in all.", 1.0),
        ("last", r"\frac{1}{2}", r"A: $\frac{2}{4}$", 1.0),
        ("last", "-4", "A: -4", 1.0),
        ("last", "3", "nothing", 0.0),
    ],
)
def test_where_the_answer_stands(rewards, extract, gold, text, expected):
    assert ask(rewards[extract], (gold, text)) == [expected]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x\nA: 80", "80"),
        ("A: -4.", "-4"),
        ("5*3 = 15", "15"),
        ("the answer is 1/2", "1/2"),
        (r"Answer: $\frac{1}{2}$", r"$\frac{1}{2}$"),
        ("there are 12 apples and 30 pears", "30"),
        ("it costs $1,200.50, all told", "1,200.50"),
        ("16-3", "16-3"),
        ("Result: none of them, 4 were left", "4"),
        ("A:", None),
        ("", None),
    ],
)
def test_last_answer(text, answer):
    assert last_answer(text) == answer


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", ["auto", "last", "box"])
def test_extraction_takes_linear_time(mode):
    """A policy that repeats itself does not stop the trainer. What is quadratic takes minutes here."""
    starts = ["", "The answer is 5", r"\boxed{1} final answer is", "It is 0."]
    pieces = [" ", "\n", "3", "a ", "1,", "1,000,", "$", r"\$", r"\(", "=", "x = ", "1/", "- ", "1 or ", "2^", "*", "_"]
    pieces += [
        "A, ",
        "final answer is ",
        "I hope it is correct",
        "<answer>",
        r"\boxed{",
        "5 thirds ",
        "(",
        "\u221a",
        " .",
    ]
    for start in starts:
        for piece in pieces:
            extract(start + piece * (20_000 // len(piece)) + " x", mode)


def test_the_length_limit():
    long = "1" + "+1" * 30  # 61 characters
    with_room, without = MathReward(extract="box", max_characters=61), MathReward(extract="box", max_characters=60)
    assert ask(with_room, ("31", rf"\boxed{{{long}}}")) == [1.0]
    assert ask(without, ("31", rf"\boxed{{{long}}}")) == [0.0]
    assert without.metrics()["unparsable"] == 1
    assert without.pool.pids() == []  # nothing was even asked
    text = "The answer is 5. " + "x " * 40
    assert ask(MathReward(max_characters=len(text)), ("5", text)) == [1.0]
    assert ask(MathReward(max_characters=8), ("5", text)) == [1.0]  # the limit is the answer's, not the text's


def test_success_order_and_counts():
    reward = MathReward(workers=2)
    golds = make_problems(*[str(i // 2) for i in range(40)])
    texts = [rf"\boxed{{{i // 2 if i % 3 else 999}}}" for i in range(40)]
    expected = [Scored(float(i % 3 > 0), i % 3 > 0) for i in range(40)]
    assert reward(golds, texts) == expected
    distinct = len(set(zip([p.answer for p in golds], texts, strict=True)))
    counts = {"checked": distinct, "cached": 40 - distinct, "timed_out": 0, "crashed": 0, "unparsable": 0}
    assert distinct < 40
    assert reward.metrics() == counts
    assert reward.metrics() == dict.fromkeys(counts, 0)  # since the last call
    assert reward(golds, texts) == expected
    assert reward.metrics() == dict.fromkeys(counts, 0) | {"cached": 40}
    assert reward(make_problems("1", "1"), ["words alone", r"\boxed{2\frac}"]) == [Scored(0.0, False)] * 2
    assert reward.metrics() == dict.fromkeys(counts, 0) | {"checked": 1, "unparsable": 2}
    with pytest.raises(ValueError, match="zip"):
        reward(golds, texts[1:])


def test_what_passes_a_limit_scores_0_and_is_counted():
    reward = MathReward(workers=1, time_limit_s=1.0)
    assert ask(reward, ("10", "10^{10^{10^{10}}}"), ("10", r"\boxed{10}"), ("10", "10^{10^{10^{10}}}")) == [0, 1, 0]
    assert reward.metrics() == {"checked": 2, "cached": 1, "timed_out": 0, "crashed": 0, "unparsable": 1}
    for status, counted, fault in (
        ("timed_out", "timed_out", "timeout"),
        ("exceeded_memory", "crashed", "memory"),
        ("crashed", "crashed", "crash"),
        ("failed", "crashed", "crash"),
    ):
        outcome = Outcome(status)
        reward.pool = type("Pool", (), {"map": lambda self, tasks, outcome=outcome: [outcome for _ in tasks]})()
        one = make_problems("10"), [rf"\boxed{{{status}}}"]
        assert reward(*one) == [Scored(0.0, False, check_fault=fault)]
        assert reward.metrics() == dict.fromkeys(_COUNTS, 0) | {"checked": 1, counted: 1}
        reward.pool = type("Pool", (), {"map": lambda self, tasks: []})()  # only the cache answers
        assert reward(*one) == [Scored(0.0, False, check_fault=fault)]
        assert reward.metrics() == dict.fromkeys(_COUNTS, 0) | {"cached": 1}


def test_memory_of_pairs_is_bounded(monkeypatch):
    monkeypatch.setattr(math_reward, "REMEMBERED_PAIRS", 3)
    reward = MathReward(extract="box", workers=1)

    def checked(*golds):
        assert ask(reward, *[(gold, rf"\boxed{{{gold}}}") for gold in golds]) == [1.0] * len(golds)
        return reward.metrics()["checked"]

    assert checked("1", "2", "3") == 3
    assert checked("1") == 0
    assert checked("4") == 1  # 2 goes, the one used longest ago
    assert checked("1", "3", "4") == 0
    assert checked("2") == 1
    assert checked(*"123456789") == 6  # more than there is room for; 2, 3 and 4 were held


def test_unusable_names_the_problems(rewards):
    golds = ("5", "", "2 3/2", "no number here!?", "1,2", r"\text{Evelyn}", "", r"\dfrac{1}{29,\!322,\!216}", "1 2")
    messages = rewards["auto"].unusable(make_problems(*golds))
    assert list(messages) == ["p1", "p2", "p3", "p6", "p8"]
    assert "'2 3/2'" in messages["p2"]


def test_most_golds_of_math_are_readable(rewards):
    problems = ProblemFiles(str(shared("math500.jsonl")), preset="math").train()
    assert rewards["auto"].unusable(problems) == {}


def test_impossible_settings_are_named_all_at_once():
    with pytest.raises(ValueError, match="extract") as error:
        MathReward(extract="middle", workers=0, time_limit_s=-1, memory_limit_mb=0, max_characters=0)
    assert re.findall(r"--reward\.\w+", str(error.value)) == [
        "--reward.extract",
        "--reward.workers",
        "--reward.time_limit_s",
        "--reward.memory_limit_mb",
        "--reward.max_characters",
    ]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))])
def test_a_copy_works_off_the_main_thread(rewards, copied):
    reward = copied(rewards["box"])
    results = []
    thread = threading.Thread(target=lambda: results.extend(ask(reward, ("1/2", r"\boxed{0.5}"))))
    thread.start()
    thread.join()
    assert results == [1.0]
    assert reward.pool.pids() != rewards["box"].pool.pids()


# --- public cases -----------------------------------------------------------------------------------------------------


def documented_disagreements() -> set[str]:
    return set(re.findall(r"^\| (vc_\d+) \|", (ROOT / "docs" / "rewards.md").read_text(), re.MULTILINE))


def plain(gold: str, answer: str) -> bool:
    """Math-verify as its documentation has it called."""
    return bool(math_verify.verify(math_verify.parse(gold), math_verify.parse(answer)))


def test_verifier_cases_agree_at_least_as_well_as_plain_math_verify(rewards, caplog):
    caplog.set_level(logging.CRITICAL)
    rows = shared_rows("verifier_cases.jsonl")
    given = ask(rewards["auto"], *[(row["gold"], row["pred"]) for row in rows])
    wrong = {row["id"] for row, reward in zip(rows, given, strict=True) if bool(reward) != row["expected"]}
    equivalences = [row for row in rows if row["kind"] == "equivalence"]
    ours = sum(row["id"] not in wrong for row in equivalences)
    theirs = sum(plain(row["gold"], row["pred"]) == row["expected"] for row in equivalences)
    print(f"agreement on {len(equivalences)} equivalences: ours {ours}, plain math-verify {theirs}")
    assert len(equivalences) == 273
    assert ours >= theirs
    assert wrong == documented_disagreements()


@pytest.mark.parametrize(("extract", "count"), [("last", 2000), ("auto", 400)])
def test_gsm8k_responses(rewards, extract, count):
    rows = shared_rows("gsm8k_responses.jsonl")[:count]
    given = ask(rewards[extract], *[(row["gold"], row["pred"]) for row in rows])
    agreement = sum(bool(reward) == row["expected"] for row, reward in zip(rows, given, strict=True)) / len(rows)
    print(f"agreement on {len(rows)} responses, {extract}: {agreement:.4f}")
    assert len(rows) == count
    assert agreement >= 0.99


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_it_scores_in_every_process_of_a_distributed_fit(tmp_path, start_method):
    """Two gloo processes, which start workers of their own; each gets its own verdicts and counts, in order."""
    module = ScoringDAPO(MathReward(extract="box", workers=2), tmp_path)
    data = RankData([replace(random_batch(), old_logprobs=torch.zeros(8, 12)) for _ in range(2)])
    strategy = DDPStrategy(process_group_backend="gloo", start_method=start_method)
    fit(module, make_policy(), data, strategy=strategy, devices=2)
    found = [json.loads((tmp_path / f"rewards-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rewards for rewards, _ in found] == [[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]]
    assert [counts["checked"] for _, counts in found] == [6, 6]


def test_the_answer_of_a_completion_is_extracted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, seen = [rf"\boxed{{{number}}}" for number in range(5)], []
    monkeypatch.setattr(math_reward, "extract", lambda text, how: seen.append(text) or text[7:-1])
    reward = MathReward(workers=1)
    problems = [Problem(id=text, prompt="", answer="3") for text in texts]
    assert [scored.success for scored in reward(problems, texts)] == [False, False, False, True, False]
    assert seen == texts
