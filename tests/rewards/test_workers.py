"""Worker processes: order, limits, replacement, and that nothing is left behind, however the parent ends."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rloop_lightning.rewards.workers import Outcome, WorkerPool, WorkerStartError

ACT = "worker_tasks:act"


@pytest.fixture
def pool():
    with WorkerPool(ACT, time_limit_s=1.0, memory_limit_mb=512, chunk=8) as pool:
        yield pool


def echoes(count):
    return [["echo", i] for i in range(count)]


def done(*values):
    return [Outcome("done", value) for value in values]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_results_come_in_order(processes, chunk):
    # Every fifth task takes longer, so that later ones are done first.
    tasks = [["sleep", 0.02] if i % 5 == 0 else ["echo", i] for i in range(60)]
    with WorkerPool(ACT, processes=processes, chunk=chunk) as pool:
        assert pool.map(tasks) == done(*["slept" if i % 5 == 0 else i for i in range(60)])
        assert len(pool.pids()) == processes
        assert pool.map([]) == []


def test_any_text_passes(pool):
    texts = ["", "\ud800 lone", "\x00\n\r", "ẞ🙂", '"]}', "x" * 3_000_000, [1, None, True, {"a": 0.5}]]
    assert pool.map([["echo", text] for text in texts]) == done(*texts)


def test_what_a_task_prints_disturbs_nobody(pool, capfd):
    assert pool.map([["print", 100_000], ["echo", 1]]) == done("printed", 1)
    assert capfd.readouterr() == ("", "")


def test_an_exception_fails_its_task_and_the_worker_lives(pool):
    [before] = pool.map([["pid", 0]])
    assert pool.map([["raise", "x"], ["pid", 0]]) == [Outcome("failed"), before]


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (["sleep", 60], "timed_out"),
        (["compute", 10**9], "timed_out"),
        (["exit", 0], "crashed"),
        (["segfault", 0], "crashed"),
        (["allocate", 2000], "exceeded_memory"),
    ],
    ids=["sleeps", "computes", "exits", "segfaults", "allocates"],
)
def test_only_the_bad_task_is_lost(pool, tmp_path, bad, status):
    """The others of its chunk are done all the same, and each once."""
    notes = [tmp_path / f"{i}" for i in range(20)]
    tasks = [["note", str(note)] for note in notes]
    tasks[7:7] = [bad]
    started = time.monotonic()
    outcomes = pool.map(tasks)
    assert time.monotonic() - started < 1.0 + 10.0  # the time limit and two starts
    assert [outcome.status for outcome in outcomes] == ["done"] * 7 + [status] + ["done"] * 13
    assert [note.read_text() for note in notes] == ["x"] * 20
    assert pool.map(echoes(5)) == done(*range(5))


def test_a_killed_worker_is_replaced_and_gone(pool):
    pool.map(echoes(40))
    before = pool.pids()
    assert [outcome.status for outcome in pool.map([["sleep", 60], ["sleep", 60]])] == ["timed_out"] * 2
    assert pool.map(echoes(40)) == done(*range(40))
    assert not set(before) & set(pool.pids())
    assert len(pool.pids()) == 2
    assert gone(before, 0.0)


def test_a_worker_that_died_between_batches_costs_no_task(pool):
    pool.map(echoes(40))
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
        assert gone([pid], 5.0)
    assert pool.map(echoes(40)) == done(*range(40))


def test_a_task_whose_worker_is_killed_from_outside_is_done_all_the_same(pool, tmp_path):
    """Once it was killed in the middle of a task, which is tried once more."""
    note = tmp_path / "note"
    assert pool.map([["die_once", str(note)], *echoes(5)]) == done("survived", *range(5))
    assert note.read_text() == "xx"


def test_a_task_that_kills_its_worker_twice_has_crashed(pool, tmp_path):
    note = tmp_path / "note"
    assert pool.map([["die", str(note)], ["echo", 1]]) == [Outcome("crashed"), *done(1)]
    assert note.read_text() == "xx"


def test_a_stopped_worker_costs_no_task(tmp_path):
    """Ctrl-Z, or a debugger: its task is done by another worker, after its time on the clock."""
    with WorkerPool(ACT, time_limit_s=0.3, processes=1) as pool:
        assert pool.map([["stop_once", str(tmp_path / "note")], ["echo", 1]]) == done("continued", 1)


def test_a_worker_that_was_stopped_while_idle_never_blocks_the_pool():
    with WorkerPool(ACT, time_limit_s=0.3, processes=1, chunk=1) as pool:
        pool.map(echoes(2))
        [pid] = pool.pids()
        os.kill(pid, signal.SIGSTOP)
        large = ["echo", "x" * 20_000_000]  # more than a socket holds
        assert pool.map([large]) == done(large[1])
        assert gone([pid], 0.0)


def test_time_is_the_workers_own_whatever_else_runs():
    """Four tasks of 0.4 s of CPU time each on one CPU take 1.6 s on the clock, more than twice the limit."""
    one = sorted(os.sched_getaffinity(0))[:1]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, one)
    try:
        with WorkerPool(ACT, time_limit_s=0.7, processes=4, chunk=1) as pool:
            assert pool.map([["burn", 0.4]] * 4) == done(*["burnt"] * 4)
            assert pool.map([["burn", 1.5]] * 4) == [Outcome("timed_out")] * 4
    finally:
        os.sched_setaffinity(0, before)


def test_a_worker_that_is_left_with_much_memory_is_replaced(pool):
    """Else the next task would fail for what the last one left behind."""
    outcomes = pool.map([["allocate", 300]] * 3 + [["echo", 1]])
    assert outcomes == done("allocated", "allocated", "allocated", 1)


def test_many_bad_tasks(pool):
    tasks = [["exit", 1] if i % 3 == 0 else ["echo", i] for i in range(18)]
    assert pool.map(tasks) == [Outcome("crashed") if i % 3 == 0 else Outcome("done", i) for i in range(18)]


def test_a_start_that_fails_says_why():
    with pytest.raises(WorkerStartError, match="no_such_module"):
        WorkerPool("no_such_module:f").map(echoes(1))
    with pytest.raises(WorkerStartError, match="nothing_here"):
        WorkerPool("worker_tasks:nothing_here").map(echoes(1))
    with pytest.raises(WorkerStartError, match="memory limit of 1 MiB"):
        WorkerPool(ACT, memory_limit_mb=1).map(echoes(1))


def test_from_several_threads(pool):
    results = {}

    def work(number):
        results[number] = pool.map([["echo", [number, i]] for i in range(30)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: done(*[[number, i] for i in range(30)]) for number in range(4)}


def test_an_interrupted_batch_leaves_no_stale_answers(pool):
    """Whatever stops a batch, the next one does not get its answers."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # an interrupted fit of Lightning's ignores it
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    pool.map(echoes(4))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.map([["sleep", 0.9], ["sleep", 0.9], ["sleep", 0.9]])
    signal.signal(signal.SIGINT, before)
    assert pool.map(echoes(4)) == done(*range(4))


def use_copy(pool, queue):
    queue.put(([outcome.value for outcome in pool.map(echoes(30))], pool.pids()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_in_a_process_of_any_start_method(pool, method):
    """A copy of the pool in a child, a daemon even, has its own workers; they end with the child and ours live on."""
    pool.map(echoes(30))
    ours = pool.pids()
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=use_copy, args=(pool, queue), daemon=True)
    child.start()
    values, theirs = queue.get()
    child.join(30)
    assert values == list(range(30))
    assert len(theirs) == 2
    assert not set(ours) & set(theirs)
    assert gone(theirs, 5.0)
    assert all(map(alive, ours))
    assert pool.map(echoes(30)) == done(*range(30))


PARENT = """
import json, sys, threading
from rloop_lightning.rewards.workers import WorkerPool
pool = WorkerPool("worker_tasks:act", time_limit_s=1.0)
pool.map([["echo", i] for i in range(40)])
print(json.dumps(pool.pids()), flush=True)
if sys.argv[1] == "busy":
    pool.map([["sleep", 60], ["compute", 10**9]])
elif sys.argv[1] == "idle":
    sys.stdin.read()
"""


@pytest.mark.parametrize(("what", "signal_"), [("ends", None), ("idle", signal.SIGKILL), ("busy", signal.SIGKILL)])
def test_workers_end_with_their_parent_however_it_ends(what, signal_):
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    pids = json.loads(parent.stdout.readline())
    assert len(pids) == 2
    if signal_ is not None:
        assert all(map(alive, pids))
        time.sleep(0.3)
        parent.send_signal(signal_)
    assert parent.wait(30) == (0 if signal_ is None else -signal_)
    parent.stdin.close()
    parent.stdout.close()
    assert gone(pids, 5.0)  # a busy one at the time limit and its grace at the latest


def test_a_pool_that_is_dropped_ends_its_workers():
    pool = WorkerPool(ACT)
    pool.map(echoes(40))
    pids = pool.pids()
    assert len(pids) == 2
    del pool
    assert gone(pids, 5.0)


def test_no_descriptors_are_left_open(pool):
    pool.map(echoes(40))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        pool.map([["exit", 1], ["echo", 1], ["exit", 1]])
    pool.map(echoes(40))
    assert len(os.listdir("/proc/self/fd")) == before
