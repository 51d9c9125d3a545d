"""What a phase leaves on disk: metrics of each step, and the newest checkpoints, whole at every moment."""

from pathlib import Path

import lightning as L
import pytest
import torch
from builders import fit, make_policy, make_problems, make_sampler, make_stream, one_right, weights
from lightning.pytorch.loggers import CSVLogger

from rloop_lightning.algorithms.dapo import DAPO
from rloop_lightning.callbacks.checkpoint import PhaseCheckpoint, checkpoint_step, checkpoints
from rloop_lightning.callbacks.phase_record import StepRecord


def stream_of(algorithm, steps):
    return make_stream(
        make_sampler(one_right),
        algorithm,
        make_problems(6),
        problems_per_step=2,
        rollouts_per_problem=2,
        steps=steps,
        seed=0,
    )


def explore(folder, every, steps=5, resume=None, algorithm=None, callbacks=()):
    algorithm = algorithm or DAPO(updates_per_step=2, lr=0.01, warmup_steps=3)
    policy, stream = make_policy(dtype=torch.float32), stream_of(algorithm, steps)
    fit_kwargs = {"ckpt_path": resume, "weights_only": True} if resume else {}
    fit(
        algorithm,
        policy,
        stream,
        [*callbacks, PhaseCheckpoint(folder, every)],
        enable_checkpointing=True,
        default_root_dir=folder,
        fit_kwargs=fit_kwargs,
    )
    return policy, stream


class Listing(L.Callback):
    """What lies in the folder after every step, before the next; stands last."""

    def __init__(self, folder):
        self.folder = folder
        self.names = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.names.append(sorted(path.name for path in self.folder.glob("*")))


@pytest.mark.parametrize(
    ("every", "steps", "left", "seen"),
    [
        (0, 4, [], [[], [], [], []]),
        (1, 4, [2, 3], [[], [1], [1, 2], [2, 3]]),  # none after the last step
        (2, 5, [2, 4], [[], [], [2], [2], [2, 4]]),
        (2, 4, [2], [[], [], [2], [2]]),
        (7, 4, [], [[], [], [], []]),
    ],
)
def test_the_two_newest_checkpoints_are_kept_and_none_after_the_last_step(tmp_path, every, steps, left, seen):
    listing = Listing(tmp_path / "c")
    explore(tmp_path / "c", every, steps, callbacks=[listing])
    assert listing.names == [[f"step-{step:06d}.ckpt" for step in names] for names in seen]
    assert [checkpoint_step(path) for path in checkpoints(tmp_path / "c")] == left


def test_a_step_that_ends_the_phase_early_leaves_no_checkpoint(tmp_path):
    """Resumed from one, the phase would go on where the uninterrupted one ended."""

    class Explodes(DAPO):
        def training_step(self, step, batch_idx):
            super().training_step(step, batch_idx)
            self.trainer.should_stop = batch_idx == 2

    _, stream = explore(tmp_path, 1, 5, algorithm=Explodes(updates_per_step=1))
    assert stream.position == 3
    assert [checkpoint_step(path) for path in checkpoints(tmp_path)] == [1, 2]


def test_a_checkpoint_is_safe_to_load_and_holds_policy_optimizer_and_stream(tmp_path):
    explore(tmp_path, 3, 5)
    (path,) = checkpoints(tmp_path)
    state = torch.load(path, weights_only=True)
    policy, stream = explore(tmp_path / "short", 0, 3)
    held = {name.removeprefix("policy."): value for name, value in state["state_dict"].items()}
    assert held.keys() == policy.state_dict().keys()
    assert all(torch.equal(held[name], value) for name, value in policy.state_dict().items())
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["position"] == stream.position == 3
    assert {int(moments["step"]) for moments in state["optimizer_states"][0]["state"].values()} == {6}


def test_a_phase_resumes_from_its_checkpoint_with_the_same_bits(tmp_path):
    whole, stream = explore(tmp_path / "whole", 2, 5)
    path = checkpoints(tmp_path / "whole")[-1]
    resumed, resumed_stream = explore(tmp_path / "resumed", 0, 5, resume=path)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed_stream.position == stream.position == 5
    assert len(resumed_stream.step_sampler.sampler.engine.calls) == 1  # steps 1 to 4 were not generated again


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save = L.Trainer.save_checkpoint

    def full_disk(trainer, path, *args, **kwargs):
        if trainer.global_step < 8:
            return save(trainer, path, *args, **kwargs)
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full_disk)
    with pytest.raises(OSError, match="no space left"):
        explore(tmp_path, 2, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002.ckpt"]
    torch.load(tmp_path / "step-000002.ckpt", weights_only=True)


def test_a_half_written_checkpoint_and_files_of_others_are_not_taken_for_one(tmp_path):
    (tmp_path / "step-000004.ckpt.partial").write_bytes(b"half")
    for name in ("step-000010.ckpt", "step-000002.ckpt", "step-best.ckpt", "step-3.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    assert [checkpoint_step(path) for path in checkpoints(tmp_path)] == [2, 10]
    assert checkpoints(tmp_path / "nowhere") == []


def test_the_record_of_a_step_goes_to_every_logger_and_is_gone(tmp_path):
    class Count(DAPO):
        def training_step(self, step, batch_idx):
            assert self.step_metrics == {}
            super().training_step(step, batch_idx)
            if batch_idx == 1:
                self.record({"only/once": torch.tensor(7.0)})

    loggers = [CSVLogger(tmp_path, name, "") for name in ("a", "b")]
    algorithm = Count(updates_per_step=1, lr=0.5, warmup_steps=2)

    def log(metrics, step):
        for logger in loggers:
            logger.log_metrics(metrics, step=step)

    fit(algorithm, make_policy(), stream_of(algorithm, 3), [StepRecord(log)], logger=loggers, log_every_n_steps=1)
    for logger in loggers:
        rows = [line.split(",") for line in (tmp_path / logger.name / "metrics.csv").read_text().splitlines()]
        table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        assert [row["step"] for row in table] == ["1", "2", "3"]
        assert [float(row["train/lr"]) for row in table] == [0.25, 0.5, 0.5]
        assert [row["only/once"] for row in table] == ["", "7.0", ""]
