"""Answers that are made to hang, run or pay where text is parsed: each is refused or compared cheaply."""

import json
import os

import pytest
from problem_files import byte_tokenizer

from rloop_lightning.data.files import ProblemFiles
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
    nested(r"\sqrt[", "]{2}", 60, "3"),
    r"\sqrt[10^{9}]{2}",
    r"\sqrt[3]{" + nested(r"\sqrt{2+\sqrt[5]{3+", "}}", 12, "x") + "}",
    nested(r"\frac{1}{1+", "}", 120, "x"),
    nested(r"\binom{", "}{2}", 20, "9"),
    "(((((3!)!)!)!)!)!",
    "(10^{3}!)!",
    r"\frac{(10^{4})!}{(10^{4}-1)!}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "(2^{1000})^{1000}",
    r"\left(\left(\left(2^{9}\right)^{9}\right)^{9}\right)^{9999}",
    "0.5^{100000}",
    "10^{-100000}",
    r"(1+10^{-50})^{10^{50}}",
    r"i^{i^{i^{i}}}",
    r"\log_{2}\left(\log_{2}\left(2^{2^{2^{20}}}\right)\right)",
    r"\sum_{a=1}^{9}\sum_{b=1}^{9}\sum_{c=1}^{9}\sum_{d=1}^{9}\sum_{e=1}^{9}\sum_{f=1}^{9} abcdef",
    r"\sum_{k=1}^{\infty}\frac{1}{k^{k^{k}}}",
    r"\prod_{k=1}^{10^{6}}\left(x-k\right)",
    r"\begin{pmatrix}" + r"\\".join(["&".join(["9^{9^{9}}"] * 9)] * 9) + r"\end{pmatrix}",
    r"\begin{pmatrix}" + r"\begin{pmatrix}" * 100,
    r"\begin{bmatrix}" + "1&" * 1200 + r"1\end{bmatrix}",
    r"\begin{bmatrix}" + r"1\\" * 900 + r"1\end{bmatrix}",
    "(x+1)(x+2)" * 100,
    "(x+y+z)^{99}-(x-y-z)^{99}",
    r"\sin^{99}x\cos^{99}x-\tan^{99}x",
    r"\frac{x^{500}-1}{x-1}",
    "|" * 501 + "x" + "|" * 501,
    r"\lfloor" * 200 + "x" + r"\rfloor" * 200,
    r"\{" * 150 + "1" + r"\}" * 150,
    "(" * 400 + "1,2" + ")" * 400,
    r"(0,1)\cup" * 120 + "(0,1)",
    r"\pm" * 500 + "1",
    "1" + "<x<1" * 150,
    r"\text{" * 300 + "a" + "}" * 300,
    "\uff11" * 3000,
    "\u2074" * 900,
    "9" + "," * 3000 + "9",
    "1 " * 1500,
    "1/" * 300 + "1",
    "a_{" * 300 + "1" + "}" * 300,
    r"\overline{" * 300 + "1" + "}" * 300,
    "e-" * 1500,
    "1e" * 1500,
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
    r"\mathrm{__import__('os').system('touch pwned')}",
    r"\sqrt{__import__('os').system('touch pwned')}",
    r"\begin{pmatrix}__import__('os')&1\end{pmatrix}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "{0.__class__.__init__.__globals__}",
    "%(__class__)s${918273}`touch pwned`$(touch pwned)",
    "x.subs(x,918273)",
    "Integer(918273)",
    "S(918273)",
    "sympify('918273')",
    "int('918273')",
    "918273 #",
    "918273\nimport os",
    r"\input{/etc/passwd}",
    r"\write18{touch pwned}",
    "9182730 .__truediv__(10)",
    "(lambda x: 918273)(0)",
    "[918273 for _ in [0]][0]",
    "getattr(918273,'real')",
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
    "9\u030818273",  # a combining mark
    "\u0967\u0968",  # Devanagari digits
    "\U0001d7ce\U0001d7cf",  # bold digits that are other digits
    "\u2460\u2461",
    "\u56db\u5341",
    "918273\ufe0f",
    "\ufeff918274",
    "9182\u0000 73",
    "\udcff918273",
    "918273\u202e0",
    r"918273\phantom{0}\text{0}",
    "918273e",
    "918273!",
    "O918273",
    "91,8273",
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


@pytest.mark.parametrize("text", CODE)
def test_no_field_of_a_problem_set_runs_or_is_a_template(text, tmp_path, monkeypatch):
    """Fields of a row, the paths that name them, and the template of prompts."""
    monkeypatch.chdir(tmp_path)
    conversation = [{"role": "system", "content": text}, {"role": "user", "content": f"1+1? {text}"}]
    rows = [
        {"id": text, "problem": text, "answer": text, "reward_model": text, "kept": text},
        {"id": 2, "prompt": conversation, "answer": [text], "kept": {text: text}},
        {"id": 3, "prompt": json.dumps(conversation), "reward_model": json.dumps({"ground_truth": text})},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ProblemFiles("a.jsonl", metadata_fields=("kept", text), template=f"{text} {{problem}} {text}")
    problems = source.train()
    assert problems[0].prompt == text
    assert [problem.prompt for problem in problems[1:]] == [f"1+1? {text}"] * 2
    for given in ({"template": f"{text}{{problem}}"}, {"system_prompt": text}, {"instruction": text}):
        shown = ProblemFiles("a.jsonl", **given).render(problems, byte_tokenizer())
        assert all(problem.prompt in rendered.prompt for problem, rendered in zip(problems, shown, strict=True))
    for named in ("problem_field", "answer_field", "id_field"):
        with pytest.raises(ValueError, match="without a field"):
            ProblemFiles("a.jsonl", **{named: f"nothing{text}"}).train()
    assert os.listdir(tmp_path) == ["a.jsonl"]
