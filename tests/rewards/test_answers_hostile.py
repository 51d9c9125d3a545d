"""Answers that are made to hang, run or pay where text is parsed: each is refused or compared cheaply."""

import os

import pytest

from rloop_lightning.rewards.math import MathReward
from rloop_lightning.types import Problem

GOLD = "918273"


def nested(opening: str, closing: str, times: int, inner: str = "1") -> str:
    return opening * times + inner + closing * times


EXPENSIVE = [
    nested(r"\sqrt{", "}", 200, "2"),
    nested(r"\sqrt{1+", "}", 35, "2"),
    nested(r"\sqrt[3]{2+\sqrt{", "}}", 18, "x"),
    r"\sqrt{x+1}" * 100,
    r"\cos " * 100 + "x",
    nested(r"\sin(", "+1)", 8, "x"),
    "(((9!)!)!)!",
    "9!!!!!!!",
    "5001!",
    "5000!",
    r"\binom{20000}{10000}",
    r"\binom{10^9}{5}",
    nested("9^{", "}", 30, "9"),
    "9^9^9^9",
    "9**9**9**9",
    "10^{10^{5}}",
    "2^{150000}",
    "(10^{4000})^{30}",
    r"e^{e^{e^{e^{10}}}}",
    r"10000^{10000}\cdot\pi",
    "x^{x^{x^{x}}}",
    "1e5000",
    "1e99999999",
    "9" * 3999,
    "0." + "1" * 3900,
    r"0.\overline{" + "123456789" * 100 + "}",
    r"\begin{pmatrix}" + r"\\".join(["&".join(["x"] * 21)] * 21) + r"\end{pmatrix}",
    r"\begin{pmatrix}x&2\\3&x\end{pmatrix}^{60}",
    r"\sum_{k=1}^{200}\sum_{j=1}^{200}\sum_{i=1}^{200} ijk",
    r"\sum_{k=1}^{10^{9}} k",
    r"\prod_{k=1}^{200} k!",
    "(a+b+c+d+e+f)^{300}",
    r"\sin(\sin(\sin(\sin(10^{400}))))",
    r"\tan(10^{4000})",
    "|x|" * 100,
    r"\pm1" * 40,
    "1=1=" * 400 + "1",
    "a<" * 200 + "b",
    "1," * 700,
    "x" * 3000,
    "-" * 3000 + "1",
    nested("{", "}", 600),
    "\u221a" * 500 + "2",
    "\u00bd" * 300,
]
CODE = [
    "__import__('os').system('touch pwned')",
    "x.__class__.__bases__",
    "().__class__.__subclasses__()",
    "x_{__import__('os')}",
    "f(__import__('os').system('touch pwned'))",
    r"\text{__import__('os')}",
    r"\operatorname{__import__}(os)",
    "a_{open('pwned','w')}",
    "Symbol('x').subs",
    "lambda: 918273",
    "918273 if True else 0",
    "918273;import os",
    "eval('918273')",
]
DISGUISED = [
    "\u0669\u0661\u0668\u0662\u0667\u0663",  # Arabic-Indic digits
    "9\u202e18273",
    "918273\u200d",
    "918273\x00",
    r"918273\hspace",
    r"918273\\\\",
    "918273_",
    "918273^",
    r"\frac{918273}{0}",
    r"918273\cdot\frac{x}{x-x}",
    "918273 918273",
    r"918273\overline{3}",
    r"918273\text{ if }x",
]


@pytest.mark.parametrize("answers", [EXPENSIVE, CODE, DISGUISED])
def test_they_neither_hang_nor_run_nor_pay(answers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where code that is run would leave its file
    boxed = [rf"\boxed{{{answer}}}" for answer in answers]
    reward = MathReward(extract="box", workers=1, memory_limit_mb=512, time_limit_s=60.0)
    gold = Problem(id="p", prompt="", answer=GOLD)
    assert reward.rewards([gold] * len(boxed), boxed) == [0.0] * len(boxed)
    counts = reward.metrics()
    assert (counts["timed_out"], counts["crashed"]) == (0, 0)
    # As gold answers too, they cost nothing, and no other answer is equal to them.
    golds = [Problem(id=str(i), prompt="", answer=answer) for i, answer in enumerate(answers)]
    assert reward.rewards(golds, [r"\boxed{\frac{2}{7}\pi y}"] * len(golds)) == [0.0] * len(golds)
    counts = reward.metrics()
    assert (counts["timed_out"], counts["crashed"]) == (0, 0)
    reward.close()
    assert os.listdir(tmp_path) == []
