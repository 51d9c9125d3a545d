"""What a user can get wrong, each through the real command line in a process of its own.

Every case ends with one short message a fault, which says where it is and what to do, and with nothing written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from bad_models import make_models
from killing import run_main
from problem_files import ROWS, write_rows
from tiny_run import TinyRun

# No hub answers there, whatever network the machine has.
NO_HUB = {"huggingface_hub.constants:ENDPOINT": "http://127.0.0.1:9"}
# A call fails, with a traceback.
NO_MODEL = {"rloop_lightning.model.source:load_model": None}


@dataclass(frozen=True)
class Case:
    """Arguments, with `{files}`, `{models}`, `{runs}` and `{out}` in them, and what the message must hold."""

    arguments: str
    said: tuple[str, ...]
    code: int = 2
    after_loading: bool = False  # only the weights show it
    patches: Mapping[str, Any] = field(default_factory=dict)
    largest_file: int | None = None


def model_case(name: str, *said: str, after_loading: bool = False) -> Case:
    where = f"--policy.model {{models}}/{name}: "
    return Case(f"--policy.model {{models}}/{name}", (where, *said), after_loading=after_loading)


def data_case(name: str, *said: str, flags: str = "") -> Case:
    return Case(f"--data {{files}}/{name} {flags}", said)


CASES = {
    # settings
    "unknown algorithm": Case("--algo dapoo", ("--algo: unknown name 'dapoo'; did you mean dapo? Known are ",)),
    "class path of nothing": Case("--algo no.such.Class", ("--algo: can't import 'no.such.Class'",)),
    "typo in a field": Case("--loop.roundz 3", ("--loop.roundz: no such option; did you mean --loop.rounds?",)),
    "typo in a part's field": Case("--algo.clip_eps_hihg 0.3", ("did you mean --algo.clip_eps_high?",)),
    "an option of another consolidation": Case(
        "--consolidate average --consolidate.epochs 2",
        ("--consolidate.epochs: the chosen --consolidate has no such option; take one that has it: --consolidate rft",),
    ),
    "an option of other algorithms": Case(
        "--algo grpo --algo.kl_targett 1 --algo.replay_per_problem 2",
        (
            "--algo.kl_targett: no such option",
            "--algo.replay_per_problem: the chosen --algo has no such option; take one that has it: --algo replay",
        ),
    ),
    "typo in a group": Case("--lop.rounds 3", ("--lop.rounds: no such option; did you mean --loop.rounds?",)),
    "no group": Case("--rounds 3", ("--rounds: no such option; did you mean --loop.rounds?",)),
    "abbreviated option": Case("--loop.round 3", ("--loop.round: no such option; did you mean --loop.rounds?",)),
    "stray word": Case("3", ("'3' is not an option; options begin with --",)),
    "option without value": Case("--loop.rounds", ("--loop.rounds: needs a value",)),
    "offload without a GPU": Case(
        "--algo.offload_optimizer true --consolidate rft --consolidate.offload_optimizer true",
        (
            "--algo.offload_optimizer: the run has no GPU, so that all memory is the host's; leave it out",
            "--consolidate.offload_optimizer: the run has no GPU",
        ),
    ),
    "part without name": Case("--algo", ("--algo needs a value",)),
    "text for an int": Case("--loop.rounds three", ("--loop.rounds: expected an integer > 0, got 'three'",)),
    "fraction for an int": Case("--loop.rounds 1.5", ("--loop.rounds: expected an integer > 0, got 1.5",)),
    "text for a float": Case("--algo.lr high", ("--algo.lr: expected a number > 0, got 'high'",)),
    "NaN for a float": Case("--algo.lr nan", ("--algo.lr: expected a number > 0, got nan",)),
    "infinity for a float": Case("--algo.lr inf", ("--algo.lr: expected a number > 0, got inf",)),
    "text in a list": Case("--eval.k [1,a]", ("--eval.k: expected a list, each an integer > 0, got '[1,a]'",)),
    "none of the choices": Case("--loop.select best", ("expected last, explored, pass@1 or pass@k, got 'best'",)),
    "value for a switch": Case("--debug=yes", ("--debug: takes no value, got 'yes'",)),
    "no such callback": Case(
        "--trainer.callbacks+=Timerr", ("no class of the name 'Timerr' is known; give its import path",)
    ),
    "callback of no module": Case("--trainer.callbacks+=no.such.Class", ("'no.such.Class': No module named 'no'",)),
    "part of no class": Case(
        '--reward rloop_lightning.rewards.weighted.WeightedSum --reward.rewards={{"a":"no.such.Class"}}',
        ("--reward.rewards: can't take ", "No module named 'no'"),
    ),
    "what the loop sets": Case("--trainer.max_epochs 3", ("--trainer.max_epochs: the loop sets this itself",)),
    "field that must be given": Case("--data hub", ("--data.dataset must be given",)),
    "several at once": Case(
        "--loop.roundz 3 --loop.rounds three --eval.samples 0 --algo.lr=-1 --algo.oops 1 --data {files}/none.jsonl "
        "--policy.model {models}/none --out {runs}/begun",
        (
            "--loop.roundz: no such option",
            "--loop.rounds: expected an integer",
            "--eval.samples: expected an integer > 0, got 0",
            "--algo.lr: expected a number > 0",
            "--algo.oops: no such option",
            "--data: no such file",
            "--policy.model {models}/none: no such folder",
            "--out {runs}/begun already contains a run",
        ),
    ),
    "missing settings file": Case("--config none.yaml", ("--config: no file 'none.yaml'", "presets are countdown")),
    "broken settings file": Case("--config {files}/broken.yaml", ("--config {files}/broken.yaml: not valid YAML",)),
    "list as settings file": Case("--config {files}/list.yaml", ("expected groups of settings such as `loop:`",)),
    "typos in a settings file": Case(
        "--config {files}/typos.yaml",
        (
            "--config {files}/typos.yaml: loop.roundz: no such option; did you mean --loop.rounds?",
            "--config {files}/typos.yaml: loop.explore_steps: expected an integer > 0, got 'many'",
            "--config {files}/typos.yaml: filter: expected a group of settings such as filter.",
            "--config {files}/typos.yaml: algo.lrr: no such option; did you mean --algo.lr?",
        ),
    ),
    "unknown names in a settings file": Case(
        "--config {files}/names.yaml --consolidate rtf",
        (
            "--config {files}/names.yaml: algo: unknown name 'minrl'; did you mean minirl?",
            "--config {files}/names.yaml: reward: can't import 'no.such.reward'",
            "error: --consolidate: unknown name 'rtf'; did you mean rft?",
        ),
    ),
    "a key twice": Case(
        '--loop={{"rounds":1,"select":"last","rounds":2}} --data.chat_template_kwargs={{"a":1,"a":2}}',
        ("--loop: rounds: it is there twice; keep one", "--data.chat_template_kwargs: a: it is there twice; keep one"),
    ),
    "negative eps": Case("--algo.clip_eps_low -0.1", ("--algo.clip_eps_low: expected a number > 0 and < 1, got -0.1",)),
    "groups of one": Case(
        "--loop.rollouts_per_problem 1", ("--loop.rollouts_per_problem must be at least 2 for DAPO, got 1",)
    ),
    "k over n": Case("--eval.k [4]", ("--eval.k must lie between 1 and --eval.samples (2), got [4]",)),
    "budget of zero": Case("--loop.explore_steps 0", ("--loop.explore_steps: expected an integer > 0, got 0",)),
    "more problems a step than there are": Case(
        "--loop.problems_per_step 9", ("--loop.problems_per_step 9 exceeds the 3 training problems",)
    ),
    "unknown evaluation set": Case("--eval.sets [tset]", ("--eval.sets: the data has no set 'tset', it has none",)),
    "impossible precision": Case("--trainer.precision 16-true", ("--trainer.precision 16-true is not supported",)),
    # problem sets
    "missing file": data_case("none.jsonl", "--data: no such file or folder: {files}/none.jsonl"),
    "broken line": data_case("broken.jsonl", "{files}/broken.jsonl: broken.jsonl:2: not valid JSON"),
    "missing field": data_case("fieldless.jsonl", "2 rows without a field 'answer'", "fieldless.jsonl:2, fieldless"),
    "ids twice": data_case("twice.jsonl", "ids must be unique", ": a; choose another --data.id_field"),
    "empty set": data_case("empty.jsonl", "{files}/empty.jsonl: the set is empty"),
    "unreadable gold": data_case(
        "golds.jsonl", "no gold answer can be read for odd", "--data.skip_unreadable true", flags="--data.preset gsm8k"
    ),
    "gold that the reward can't read": data_case(
        "golds.jsonl",
        "--reward CountdownReward: train: odd: the answer must be an integer, got 'none\\x1b'",
        "skip them with --data.skip_unreadable true",
        flags="--reward countdown",
    ),
    "no gold that the reward can read": data_case(
        "golds.jsonl",
        "--reward CountdownReward can't read the gold answer of any problem of train",
        flags="--reward countdown --data.skip_unreadable true",
    ),
    "unknown preset": Case("--data.preset gsm", ("--data.preset 'gsm' is not known; did you mean gsm8k?",)),
    "data set without a hub": Case(
        "--data nobody/nothing",
        ("--data nobody/nothing: can't be loaded", "doesn't answer", "no file or folder has that name either"),
        patches=NO_HUB,
    ),
    "typo in a variable of the chat template": Case(
        "--data.chat_template_kwargs.enable_thinkng=false",
        ("--data.chat_template_kwargs: --policy.model's chat template has no variable 'enable_thinkng'",),
        after_loading=True,
    ),
    "list for a mapping": Case(
        "--data.chat_template_kwargs=[a]", ("--data.chat_template_kwargs: expected a mapping or null, got '[a]'",)
    ),
    "text for a list": Case("--engine.stop=x", ("--engine.stop: expected a list, each text, got 'x'",)),
    "empty stop": Case('--engine.stop=["a",""]', ("--engine.stop: expected a list of texts, none of them empty",)),
    "special token inside a stop": Case(
        '--engine.stop=["a<|im_end|>"]', ("'a<|im_end|>': <|im_end|> is a special token",), after_loading=True
    ),
    "prompts too long": Case(
        "--engine.max_new_tokens 2040",
        (
            "3 prompts don't fit --policy.model's 2048 positions",
            "leave these problems out by --data.max_prompt_tokens 8",
        ),
        after_loading=True,
    ),
    "completions as long as the context": Case(
        "--engine.max_new_tokens 2048", ("; set --engine.max_new_tokens to 1926 or less",), after_loading=True
    ),
    "completions that neither the context nor the memory has room for": Case(
        "--engine.max_new_tokens 2000000000",
        ("--engine.max_new_tokens 2000000000 leaves no room for a prompt in the model's 2048 positions; take less",),
    ),
    "optimizer that needs a closure": Case(
        "--algo.optimizer torch.optim.LBFGS --algo.weight_decay 0",
        ("--algo.optimizer can't be used: torch.optim.LBFGS raises ValueError: LBFGS doesn't support per-parameter",),
    ),
    "optimizer of sparse gradients": Case(
        "--algo.optimizer torch.optim.SparseAdam --algo.weight_decay 0",
        ("--algo.optimizer can't be used: torch.optim.SparseAdam raises RuntimeError",),
    ),
    "optimizer with a wrong value": Case(
        '--consolidate rft --consolidate.optimizer torch.optim.SGD --consolidate.optimizer_options {{"momentum":-1}}',
        ("--consolidate.optimizer_options can't be used: torch.optim.SGD raises ValueError: Invalid momentum value",),
    ),
    "null for a gold answer": data_case(
        "nulls.jsonl", "no gold answer can be read for n", "--data.skip_unreadable true", "n has null"
    ),
    "memory without a unit": Case(
        "--plan.memory 24", ("--plan.memory: expected a size such as 24GiB, 80GB or 512MiB, got '24'",)
    ),
    # models
    "routing replay of a dense model": Case(
        "--policy.routing_replay r2",
        (
            "--policy.model {models}/good: no routers are known for model type 'qwen2'",
            "--policy.routing_replay takes flex_olmo, mixtral, olmoe, qwen2_moe, qwen3_moe, leave it at none",
        ),
    ),
    "no such model folder": Case("--policy.model {models}/none", ("--policy.model {models}/none: no such folder",)),
    "file as model": Case("--policy.model {models}/good/config.json", ("is a file; give the folder that holds it",)),
    "model name without a hub": Case(
        "--policy.model nobody/nothing", ("--policy.model nobody/nothing: no folder of that name",), patches=NO_HUB
    ),
    "typo in the embedded model's name": Case(
        "--policy.model countdwn", ("doesn't answer", "did you mean countdown?"), patches=NO_HUB
    ),
    "model without config": model_case("no_config", "contains no config.json"),
    "adapter of another kind": model_case(
        "adapter", "adapter_config.json: peft_type must be LORA, the one kind of adapter that is supported, got None"
    ),
    "broken config": model_case("bad_config", "config.json is not valid JSON"),
    "code of its own": model_case("auto_map", "config.json asks for code of its own (auto_map)"),
    "unknown architecture": model_case("unknown", "knows no model_type 'nonesuch'"),
    "no causal model": model_case("t5", "a model of type 't5' is not a causal language model"),
    "encoder and decoder": model_case("bart", "a model of type 'bart' with an encoder is not a causal language model"),
    "vision and language": model_case("vision", "a model of type 'qwen2_5_vl' is not a causal language model"),
    "list as config": model_case("list_config", "config.json must hold an object, it holds a list"),
    "config without a type": model_case("no_type", "config.json names no model_type"),
    "weights beside an adapter": model_case(
        "adapter_left", "contains an adapter (adapter_config.json) beside a model", "delete adapter_config.json"
    ),
    "quantised by bitsandbytes": model_case("bitsandbytes", "its weights are quantised (bitsandbytes 4 bit)"),
    "quantised by GPTQ": model_case("gptq", "its weights are quantised (gptq), which can't be trained"),
    "quantised inside": model_case("awq", "its weights are quantised (awq), which can't be trained"),
    "recurrent model": model_case("recurrent", "a model of type 'mamba' has no KV cache"),
    "unknown activation": model_case("unknown_activation", "config.json describes no model: KeyError: 'nonesuch'"),
    "no attention heads": model_case("no_heads", "config.json describes no model: ZeroDivisionError: "),
    "text for a size": model_case("text_for_size", "Validation error for field 'hidden_size': TypeError: "),
    "text as EOS": model_case("text_as_eos", "eos_token_id must be a token id or a list of them, got '<eos>'"),
    "list as tokenizer": model_case("list_tokenizer", "tokenizer_config.json must hold an object, it holds a list"),
    "weights of a newer format": model_case("unknown_dtype", "model.safetensors holds model.norm.weight as 'F99'"),
    "folder for weights": model_case("unreadable", "contains no weights (model.safetensors)"),
    "no head": model_case("no_head", "the files lack lm_head.weight", after_loading=True),
    "beyond the original context": Case(
        "--policy.model {models}/longrope --engine.max_new_tokens 250",
        ("3 prompts don't fit --policy.model's 256 positions of its original context (longrope", "max_new_tokens 250"),
        after_loading=True,
    ),
    "no tokenizer": model_case("no_tokenizer", "contains no tokenizer"),
    "broken tokenizer": model_case("bad_tokenizer", "its tokenizer can't be loaded"),
    "no EOS": model_case("no_eos", "neither the tokenizer nor generation_config.json names an EOS token"),
    "vocabulary too small": model_case("small_vocabulary", "the tokenizer has ids up to ", "ends at 199"),
    "weights as pickles": model_case("pickle", "pickles", "use_safetensors=False"),
    "no weights": model_case("no_weights", "contains no weights"),
    "weights cut short": model_case("cut", "model.safetensors holds 9,999 bytes and should hold ", "was cut short"),
    "header cut short": model_case("beheaded", "model.safetensors is cut short or no safetensors file"),
    "missing shard": model_case("shards", "index.json names model-00002-of-00002.safetensors, which the folder lacks"),
    "missing weight": model_case("missing_weight", "the files lack model.norm.weight", after_loading=True),
    "weight too many": model_case("extra_weight", "the files hold value.weight", after_loading=True),
    "weight of another shape": model_case("other_shape", "model.norm.weight", "another shape", after_loading=True),
    "chat template that takes all memory": model_case(
        "template_bomb",
        "its chat template needs more than 512 MiB of memory; take another model, or delete the",
    ),
    "chat template that recurses": model_case(
        "template_recursion", "its chat template nests too deeply; take another model", after_loading=True
    ),
    "vocabulary of a million million": model_case(
        "huge_vocabulary", "config.json describes a model of 64,000,000,015,656 numbers, and the weights hold 32,288"
    ),
    "a thousand million layers": model_case("huge_depth", "config.json: num_hidden_layers 1000000000 is more than"),
    "unknown rotary embedding": model_case("unknown_rope", "config.json describes no model: KeyError: '\\x1b[2J'"),
    "missing rotary factor": model_case("no_factor", "config.json can't be loaded: KeyError: ", "{{'factor'}}"),
    "negative context": model_case("no_context", "config.json leaves room for -7 positions", after_loading=True),
    "model as tokenizer": model_case(
        "model_as_tokenizer", "tokenizer_config.json: tokenizer_class Qwen2ForCausalLM is no tokenizer"
    ),
    "endless header": model_case("endless_header", "model.safetensors is cut short or no safetensors file"),
    "garbled header": model_case("garbled_header", "model.safetensors is cut short or no safetensors file"),
    "escape in a header": model_case(
        "escape_in_header", "model.safetensors is damaged: its header has a wrong place or size for \\x1b[2J; copy"
    ),
    "index of files elsewhere": model_case("index_outside", "index.json names ../../x\\x1b[2J.safetensors, which the"),
    "endless file": model_case("endless_file", "vocab.json is neither a file nor a folder; remove or replace it"),
    "pipe for a file": model_case("unfed_pipe", "merges.txt is neither a file nor a folder; remove or replace it"),
    "NaN weights": model_case("nan", "NaN or infinite numbers in model.norm.weight", after_loading=True),
    # run folders
    "existing run": Case(
        "--out {runs}/begun", ("--out {runs}/begun already contains a run; resume it with --resume {runs}/begun",)
    ),
    "file as run folder": Case("--out {files}/good.jsonl", ("{files}/good.jsonl is not a folder; choose another",)),
    "file above the run folder": Case("--out {files}/good.jsonl/run", ("{files}/good.jsonl is not a folder",)),
    "unwritable run folder": Case("--out /proc/run", ("--out /proc/run: can't write in /proc: ",)),
    "full disk": Case(
        "",
        ("can't write {out}/config.yaml: ", "free disk space, or choose another folder with --out, and start again"),
        code=1,
        after_loading=True,
        largest_file=1000,
    ),
    "resume of nothing": Case("--resume {runs}/none", ("--resume {runs}/none: no state.json there",)),
    "resume to another place": Case(
        "--resume {runs}/begun --out {out}",
        ("--out: the run of --resume {runs}/begun goes on where it is; leave --out out",),
    ),
    "resume to a store": Case(
        "--resume {runs}/begun --out memory://place", ("--out: the run of --resume {runs}/begun",)
    ),
    "resume with broken states": Case(
        "--resume {runs}/bad_state",
        ("bad_state/state.json is damaged", "no other record of its state exists"),
    ),
    "resume of another run": Case(
        "--resume {runs}/begun --engine.temperature 0.5",
        (
            "--resume: --engine.temperature was 1.0 when the run started and is 0.5 now; leave it out, or start a new "
            "run",
        ),
    ),
    "resume with other prompts and stops": Case(
        '--resume {runs}/begun --data.chat_template_kwargs.messages=1 --engine.stop=["a"]',
        (
            "--resume: --data.chat_template_kwargs.messages was None when the run started and is 1 now; leave it out",
            "--resume: --engine.stop was [] when the run started and is ['a'] now; leave it out",
        ),
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Problem files, models and runs, good and bad."""
    folder = tmp_path_factory.mktemp("bad")
    places = {name: folder / name for name in ("files", "models", "runs")}
    for place in places.values():
        place.mkdir()
    make_files(places["files"])
    make_models(places["models"])
    tiny = TinyRun.written(
        places["files"],
        policy={"model": str(places["models"] / "good")},
        data={"name": "files", "path": str(places["files"] / "good.jsonl")},
        reward={"name": "rloop_lightning.rewards.weighted.BoxFormat"},
        engine={"max_new_tokens": 8},
        consolidate={"name": "none"},
        loop={"explore_steps": 1, "problems_per_step": 2, "rollouts_per_problem": 2},
        eval={"k": [1], "sets": None},
        trainer={"accelerator": "cpu"},
    )
    make_runs(places["runs"], tiny.config)
    return places


def make_files(folder: Path) -> None:
    write_rows(folder / "good.jsonl")
    (folder / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"id": "b"\n')
    write_rows(folder / "fieldless.jsonl", [ROWS[0], {"problem": "1?"}, {"problem": "2?"}])
    write_rows(folder / "twice.jsonl", [*ROWS, {**ROWS[0], "problem": "Another?"}])
    write_rows(folder / "nulls.jsonl", [ROWS[0], {"id": "n", "problem": "1?", "answer": None}])
    write_rows(folder / "golds.jsonl", [{"id": "odd", "problem": "1?", "answer": "none\x1b"}])
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.yaml").write_text("loop: {rounds: 3\n")
    (folder / "list.yaml").write_text("- loop\n")
    (folder / "names.yaml").write_text("algo: minrl\nreward: no.such.reward\nconsolidate: {name: rfft}\n")
    (folder / "typos.yaml").write_text(
        "loop: {roundz: 3, explore_steps: many}\nfilter: 3\nalgo: {name: dapo, lrr: 1}\neval:\n"
    )


def make_runs(folder: Path, config: Path) -> None:
    log = folder / "log"
    assert run_main(["--config", str(config), "--out", str(folder / "begun")], log) == 0, log.read_text()
    bad = shutil.copytree(folder / "begun", folder / "bad_state")
    for state in bad.rglob("state*.json"):
        state.write_text("{")


def contents(places: Mapping[str, Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for place in places.values() for path in place.rglob("*") if path.is_file()}


def run(case: Case, places: Mapping[str, Path], tmp_path: Path) -> tuple[int, str]:
    """Exit code, and all that was written to stdout and stderr."""
    names = {**places, "out": tmp_path / "made" / "run"}
    arguments = case.arguments.format(**names).split()
    if "--resume" not in arguments:
        arguments = ["--config", str(places["files"] / "tiny.yaml"), "--out", str(names["out"]), *arguments]
    log = tmp_path / "log"
    # What can be told without the weights is told before they are read.
    patches = case.patches if case.after_loading else {**case.patches, **NO_MODEL}
    return run_main(arguments, log, patches, case.largest_file), log.read_text()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_a_message_that_says_where_and_what_to_do(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    case, before = CASES[name], contents(places)
    code, shown = run(case, places, tmp_path)
    assert code == case.code, shown
    for fragment in case.said:
        assert fragment.format(**places, out=tmp_path / "made" / "run") in shown
    # One line a fault, nothing around them: no traceback, no usage, no warning of a library, no control character.
    assert [line for line in shown.splitlines() if not line.startswith("rloop-fit: error: ")] == []
    assert shown.replace("\n", "").isprintable()
    assert not (tmp_path / "made").exists()
    assert contents(places) == before


@pytest.mark.parametrize("name", ["typo in a field", "weights cut short", "NaN weights"])
def test_debug_shows_the_traceback(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    case = CASES[name]
    code, shown = run(replace(case, arguments=f"{case.arguments} --debug"), places, tmp_path)
    assert code == 1
    assert "Traceback" in shown
    assert case.said[0].format(**places) in shown
    assert not (tmp_path / "made").exists()


def test_what_is_good_of_all_this_runs(places: dict[str, Path]) -> None:
    """Or the cases above might fail for another reason than theirs."""
    assert (places["runs"] / "begun" / "final" / "config.json").is_file()


def test_the_preset_is_named_where_its_settings_do_not_fit_own_problems(
    places: dict[str, Path], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    data = str(places["files"] / "good.jsonl")
    assert run_main(["--data", data, "--out", str(tmp_path / "run")], log, NO_MODEL) == 2
    said = log.read_text()
    assert "neither --config nor --policy.model is given, so the settings are those of the preset countdown" in said
    assert not (tmp_path / "run").exists()
