"""Writes the plans and the table of docs/scaling.md: `python docs/scaling_tables.py`, from the repository's root.

Each part of the page between two marks is a command and what it prints. tests/test_docs_scaling.py makes them again.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from rloop_lightning.cli.main import main

PAGE = Path(__file__).with_name("scaling.md")
END = "<!-- end -->"

_PLAN = "rloop-fit --plan --data countdown --engine vllm --policy.model docs/shapes/"
_WHOLE = "--policy.dtype bfloat16 --policy.gradient_checkpointing true --policy.max_tokens_per_micro_batch auto"
_LONG = "--engine.max_new_tokens 8192"
_RATES = (
    "--engine.max_rows 512 --engine.max_new_tokens 4096 --plan.generate_tokens_per_s 14217 "
    "--plan.row_tokens_per_s 109 --plan.update_tokens_per_s 49380"
)

PLANS: Mapping[str, str] = {
    "7B, 8 GPUs": f"{_PLAN}qwen2.5-7b {_WHOLE} {_LONG} --plan.memory 80GB --plan.devices_per_node 8 "
    "--plan.strategy fsdp2",
    "32B, 4 nodes of 8": f"{_PLAN}qwen2.5-32b {_WHOLE} {_LONG} --plan.memory 80GB --plan.nodes 4 "
    "--plan.devices_per_node 8 --plan.strategy fsdp2",
    "32B, 4 nodes of 8, a copy per node": f"{_PLAN}qwen2.5-32b {_WHOLE} {_LONG} --plan.memory 141GB --plan.nodes 4 "
    "--plan.devices_per_node 8 --plan.strategy hsdp",
    "235B MoE, 32 GPUs, LoRA": f"{_PLAN}qwen3-235b-a22b {_WHOLE} {_LONG} --policy.lora.rank 32 --policy.lora.targets "
    "[q_proj,k_proj,v_proj,o_proj] --plan.memory 80GB --plan.nodes 4 --plan.devices_per_node 8 --plan.strategy fsdp2",
    "235B MoE, 32 GPUs": f"{_PLAN}qwen3-235b-a22b {_WHOLE} {_LONG} --plan.memory 141GB --plan.nodes 4 "
    "--plan.devices_per_node 8 --plan.strategy fsdp2",
    "235B MoE, 32 nodes of 8": f"{_PLAN}qwen3-235b-a22b {_WHOLE} {_LONG} --plan.memory 141GB --plan.nodes 32 "
    "--plan.devices_per_node 8 --plan.strategy fsdp2",
}
"""Command by row of the table."""

SIMULATIONS: Mapping[str, str] = {
    "4 ranks, 4 engines": f"{_PLAN}qwen3-0.6b --plan.memory 80GB --plan.devices_per_node 4 --plan.engines 4 {_RATES}",
    "4 ranks, 12 engines": f"{_PLAN}qwen3-0.6b --plan.memory 80GB --plan.devices_per_node 4 --plan.engines 12 {_RATES}",
    "4 ranks, 12 engines, stragglers": f"{_PLAN}qwen3-0.6b --plan.memory 80GB --plan.devices_per_node 4 "
    f"--plan.engines 12 {_RATES} --plan.straggler_share 0.05 --plan.straggler_slowdown 2",
}
"""Command by what it shows."""


def page() -> str:
    """The page with its parts made again."""
    text = PAGE.read_text(encoding="utf-8")
    printed = {name: printed_by(command) for name, command in {**PLANS, **SIMULATIONS}.items()}
    for name in re.findall(r"<!-- command: (.+?) -->", text):
        command = {**PLANS, **SIMULATIONS}[name]
        shown = (
            printed[name] if name in PLANS else printed[name].partition("\n\nsimulated ")[2].join(["simulated ", ""])
        )
        text = _replaced(text, f"<!-- command: {name} -->", f"{_indented(_wrapped(command))}\n\n{_indented(shown)}")
    return _replaced(text, "<!-- table -->", _table(printed))


def printed_by(command: str) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it fails.
    """
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(shlex.split(command)[1:])
    if code:
        raise RuntimeError(f"exit code {code}: {command}")
    return out.getvalue().rstrip("\n")


def _table(printed: Mapping[str, str]) -> str:
    lines = [
        "| model | strategy | a device | held by a rank in an update | of it weights, gradients, moments | "
        "communication of a step, to each rank | pushed to each engine |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, command in PLANS.items():
        shown = printed[name]
        strategy, memory = _after("--plan.strategy", command), _after("--plan.memory", command)
        training = re.search(r"^training .*: ([\d.]+ \w+), (.*)", shown, re.MULTILINE)
        assert training is not None
        held = " + ".join(_size(part, shown) for part in ("weights", "gradients", "optimizer"))
        sent = re.search(r"^communication of a rollout step: (.*) to each", shown, re.MULTILINE)
        assert sent is not None
        cells = [name, strategy, memory, f"{training[1]}, {training[2]}", held, sent[1]]
        lines.append(f"| {' | '.join([*cells, _size('weights pushed to each engine', shown)])} |")
    return "\n".join(lines)


def _after(flag: str, command: str) -> str:
    words = command.split()
    return words[words.index(flag) + 1]


def _size(part: str, shown: str) -> str:
    found = re.search(rf"^  {part} +([\d.,]+ \w+)", shown, re.MULTILINE)
    return found[1] if found else "0"


def _wrapped(command: str) -> str:
    """A command over several lines, an option with its value on one."""
    lines, line = [], ""
    for part in re.findall(r"\S+(?: (?!--)\S+)*", command):
        if line and len(line) + len(part) > 100:
            lines.append(f"{line} \\")
            line = f"    {part}"
        else:
            line = f"{line} {part}" if line else part
    return "\n".join([*lines, line])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def _replaced(text: str, mark: str, part: str) -> str:
    before, _, rest = text.partition(f"{mark}\n")
    _, _, after = rest.partition(END)
    return f"{before}{mark}\n\n{part}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
