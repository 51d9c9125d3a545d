"""How the processes of a job start: by the command itself, torchrun or srun; and what is refused before they do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from rank_jobs import free_port, kill_all, run_ranks, start_job, wait_until_ended
from same_rows import assert_same_rows
from tiny_run import TinyRun

from rloop_lightning.cli.main import main
from rloop_lightning.system.ranks import Place, launched_place

pytestmark = pytest.mark.timeout(600)  # a busy machine

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun.written(
        tmp_path_factory.mktemp("tiny"),
        reward={"name": "reward_functions.boxed"},
        loop={"explore_steps": 2, "problems_per_step": 3, "rollouts_per_problem": 4},
        eval={"max_problems": 1},
    )


def started(
    tmp_path: Path, *arguments: str, launcher: tuple[str, ...] = (), imports: Path | None = None
) -> tuple[int, str]:
    """Exit code and output of a command that leaves no process behind."""
    log = tmp_path / "log"
    process = start_job(arguments, log, launcher, imports)
    try:
        code = process.wait(240)
        assert wait_until_ended(tmp_path, 5) == []
        return code, log.read_text()
    finally:
        process.kill()
        kill_all(wait_until_ended(tmp_path, 0))


def test_the_command_and_torchrun_start_all_processes(tiny: TinyRun, tmp_path: Path) -> None:
    outs = {}
    for name, launcher in {
        "itself": (),
        "torchrun": (*TORCHRUN, "--nproc-per-node", "2", "--master-port", str(free_port())),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        outs[name] = folder / "run"
        code, said = started(
            folder, "--config", str(tiny.config), "--out", str(outs[name]), "--trainer.devices", "2", launcher=launcher
        )
        assert code == 0, said
        assert said.count(f"is in {outs[name] / 'final'}") == 1  # one process speaks
        assert "Traceback" not in said
    assert_same_rows(outs["torchrun"], outs["itself"], weights_within=1e-12)
    alone = tmp_path / "alone"
    job = run_ranks(1, ["--config", str(tiny.config), "--out", str(alone / "run")], alone)
    assert job.codes == [0], job.said
    assert_same_rows(outs["itself"], alone / "run")


def test_another_number_of_processes_than_the_launchers_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    arguments = ["--config", str(tiny.config), "--out", str(tmp_path / "run")]
    job = run_ranks(2, [*arguments, "--trainer.devices", "3", "--trainer.num_nodes", "1"], tmp_path)
    assert job.codes == [2, 2], job.said
    assert job.errors == [
        "rloop-fit: error: the launcher has started 2 processes, and --trainer.devices x --trainer.num_nodes is 3; "
        "give numbers whose product is 2"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_the_command_ends_all(rank: int, tiny: TinyRun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    arguments = ("--config", str(tiny.config), "--out", str(tmp_path / "run"), "--trainer.devices", "2")
    process = start_job((*arguments, "--loop.explore_steps", "1000"), log)
    try:
        wait_for(lambda: list((tmp_path / "run").rglob("*.ckpt")))
        victim = process.pid if rank == 0 else children_of(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        code = process.wait(60)
        assert wait_until_ended(tmp_path, 60) == []
    finally:
        process.kill()
        kill_all(wait_until_ended(tmp_path, 0))
    said = log.read_text()
    assert code == {0: -signal.SIGKILL, 1: 1}[rank]
    expected = {
        0: "rloop-fit: error: rank 0 was killed, or its machine can't be reached",
        1: f"rloop-fit: error: rank 1 (process {victim}) was killed by SIGKILL",
    }
    assert said.count("rloop-fit: error:") == 1
    assert expected[rank] in said


def test_a_process_that_dies_while_it_starts_is_told(tiny: TinyRun, tmp_path: Path) -> None:
    """Rank 0 does not wait for it."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os\nif os.environ.get('RANK') == '1':\n    os._exit(7)\n")
    code, said = started(
        tmp_path,
        *("--config", str(tiny.config), "--out", str(tmp_path / "run"), "--trainer.devices", "2"),
        imports=broken,
    )
    assert code == 1
    assert "rank 1 (process " in said
    assert "has ended with exit code 7" in said


def wait_for(condition: object) -> None:
    import time

    assert callable(condition)
    until = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def children_of(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--trainer.num_nodes 2",
            "--trainer.num_nodes 2: torchrun or srun starts the processes of other machines; docs/clusters.md",
        ),
        ("--trainer.strategy fsdp2", "--trainer.strategy fsdp2 and hsdp shard over processes; give --trainer.devices"),
        ("--trainer.strategy hsdp", "--trainer.strategy fsdp2 and hsdp shard over processes; give --trainer.devices"),
        (
            "--trainer.strategy fsdp --trainer.devices 2",
            "--trainer.strategy fsdp is not supported: FSDP1",
        ),
        ("--trainer.strategy deepspeed --trainer.devices 2", "--trainer.strategy deepspeed is not supported: FSDP1"),
        (
            "--trainer.strategy fsdp2 --trainer.devices 2 --policy.quantization nf4 --policy.lora.rank 4",
            "--policy.quantization nf4: weights in 4 bits can't be sharded (--trainer.strategy fsdp2)",
        ),
        (
            "--trainer.strategy fsdp2 --trainer.devices 2 --algo.optimizer adamw8bit",
            "--algo.optimizer adamw8bit: moments in 8 bits can't be sharded (--trainer.strategy fsdp2)",
        ),
        (
            "--trainer.strategy hsdp --trainer.devices 2 --consolidate.optimizer paged_adamw8bit",
            "--consolidate.optimizer paged_adamw8bit: moments in 8 bits can't be sharded (--trainer.strategy hsdp)",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_process_starts(
    options: str, expected: str, tiny: TinyRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--config", str(tiny.config), "--out", str(out), *options.split()]) == 2
    said = capfd.readouterr().err
    assert f"rloop-fit: error: {expected}" in said
    assert not out.exists()


def test_srun_gives_the_place(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "SLURM_NTASKS": "6",
        "SLURM_NTASKS_PER_NODE": "3",
        "SLURM_PROCID": "4",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "train",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # and again after the test: Lightning sets it
    place = launched_place()
    assert place is not None
    assert (place.rank, place.size, place.host, place.serves) == (4, 6, "gpu07", False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    first = launched_place()
    assert first is not None
    assert first.serves
    assert first.port == place.port  # the same on all ranks
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    assert main([]) == 2
    error = "rloop-fit: error: srun --ntasks 6: give --nodes and --ntasks-per-node instead (docs/clusters.md)\n"
    assert capfd.readouterr().err == error
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launched_place() is None


def test_torchrun_gives_the_place() -> None:
    given = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    assert launched_place(given) == Place(3, 8, "node7", 29500, serves=False)
    assert launched_place({**given, "RANK": "0"}) == Place(0, 8, "node7", 29500, serves=True)
    agent = {**given, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert launched_place(agent) == Place(0, 8, "node7", 29500, serves=False)
    assert launched_place({**given, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert launched_place({}) is None
