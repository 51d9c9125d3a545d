"""What an exploration remembers of a problem's earlier rollouts: its latest visit, and whether it was ever solved.

    visits = Visits(seed=0)
    visits.load(pool)                               # what a resumed exploration knows already
    visits.similarity(12, problem_ids, completions)  # of step 12, within it and with the problems' latest visits
    visits.add(12, problem_ids, completions, right)
    visits.coverage()

A visit is the rollouts of a problem in one rollout step. The state depends on the rollouts alone, not on their order
inside a step, so that the state that is loaded from a pool equals the one that saw the rollouts.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from rloop_lightning.evaluation.similarity import Similarity, ngram_similarity
from rloop_lightning.evaluation.solved import Coverage, coverage
from rloop_lightning.rollouts.pool import RolloutPool, list_rows
from rloop_lightning.rollouts.pool_scan import open_shard
from rloop_lightning.seeds import derive_seed

_MAX_PAIRS = 64  # of a problem and kind, for the similarity of a step
_KEPT = 4  # rollouts of a visit; with 16 new ones they make 64 pairs
_MOST_TOKENS = 1 << 26  # of kept rollouts; 256 MB as int32


class Visits:
    """The latest visits of an exploration's problems.

    Args:
        seed: seed of the choice of kept rollouts and compared pairs.
        most_tokens: bound of the tokens kept. The visits of the oldest steps are dropped first, and their problems then
            count as not visited before.
    """

    def __init__(self, seed: int, *, most_tokens: int = _MOST_TOKENS) -> None:
        self.seed = seed
        self.most_tokens = most_tokens
        self._kept: dict[str, tuple[int, list[np.ndarray]]] = {}  # by problem: step and rollouts of the latest visit
        self._steps: deque[tuple[int, int, list[str]]] = deque()  # steps in memory, oldest first: tokens and problems
        self._tokens = 0  # of all steps in memory
        self._solved: dict[str, bool] = {}  # by problem, whether its latest visit has a success
        self._ever: set[str] = set()

    def load(self, pool: RolloutPool) -> None:
        """Add the rollout steps that a pool holds, without its extra captures. Memory is bounded as before.

        Raises:
            DamagedError: a file is not a shard of a pool, or damaged.
        """
        shards = [path for path in pool.shards() if path.name.startswith("step-")]
        for path in shards:
            with open_shard(path, ["problem_id", "success"]) as shard:
                table = shard.read(columns=["problem_id", "success"], use_threads=False)
            self._note(table["problem_id"].to_pylist(), table["success"].to_pylist())
        for path in reversed(shards):
            columns = ["problem_id", "rollout_step", "completion_ids"]
            with open_shard(path, columns) as shard:
                table = shard.read(columns=columns, use_threads=False).combine_chunks()
            if not len(table):
                continue
            step = table["rollout_step"][0].as_py()
            kept = self._chosen(step, table["problem_id"].to_pylist(), list_rows(table["completion_ids"].chunk(0)))
            if self._tokens + _tokens(kept) > self.most_tokens:
                return
            self._tokens += _tokens(kept)
            self._steps.appendleft((step, _tokens(kept), list(kept)))
            for problem_id, rollouts in kept.items():
                self._kept.setdefault(problem_id, (step, rollouts))

    def similarity(self, step: int, problem_ids: Sequence[str], completions: Sequence[np.ndarray]) -> Similarity:
        """Similarity of a step's rollouts: within the step, and with the latest visits. Call it before `add`.

        Args:
            step: rollout step of the exploration.
            problem_ids: [R].
            completions: R arrays of token ids.
        """
        seed = derive_seed(self.seed, "pairs", step)
        here = [step] * len(completions)
        within = ngram_similarity(problem_ids, here, completions, max_pairs=_MAX_PAIRS, seed=seed)
        again = [row for row, problem_id in enumerate(problem_ids) if problem_id in self._kept]
        ids = [problem_ids[row] for row in again]
        known = [(name, *self._kept[name]) for name in dict.fromkeys(ids)]
        earlier = [(name, visit, rollout) for name, visit, rollouts in known for rollout in rollouts]
        across = ngram_similarity(
            [*ids, *(name for name, _, _ in earlier)],
            [*here[: len(ids)], *(visit for _, visit, _ in earlier)],
            [*(completions[row] for row in again), *(rollout for _, _, rollout in earlier)],
            max_pairs=_MAX_PAIRS,
            seed=seed,
        )
        return Similarity(within.intra_step, across.inter_step, within.intra_pairs, across.inter_pairs)

    def add(
        self, step: int, problem_ids: Sequence[str], completions: Sequence[np.ndarray], right: Sequence[bool]
    ) -> None:
        """Add the rollouts of the next step.

        Args:
            step: rollout step of the exploration; rises.
            problem_ids: [R].
            completions: R arrays of token ids.
            right: [R], whether each is a success.
        """
        self._note(problem_ids, right)
        kept = self._chosen(step, problem_ids, completions)
        self._kept |= {problem_id: (step, rollouts) for problem_id, rollouts in kept.items()}
        self._steps.append((step, _tokens(kept), list(kept)))
        self._tokens += _tokens(kept)
        while self._steps and self._tokens > self.most_tokens:
            dropped, tokens, names = self._steps.popleft()
            self._tokens -= tokens
            for name in names:
                if name in self._kept and self._kept[name][0] == dropped:
                    del self._kept[name]

    def coverage(self) -> Coverage:
        """Of the problems seen: those that the latest visit solves, and those ever solved."""
        now = np.fromiter(self._solved.values(), dtype=bool, count=len(self._solved))
        ever = np.fromiter((name in self._ever for name in self._solved), dtype=bool, count=len(self._solved))
        return coverage(ever, now)

    def _note(self, problem_ids: Sequence[str], right: Sequence[bool]) -> None:
        """Note which problems the next step solves."""
        solved = dict.fromkeys(problem_ids, False)
        for problem_id, success in zip(problem_ids, right, strict=True):
            solved[problem_id] |= bool(success)
        self._solved |= solved
        self._ever.update(name for name, success in solved.items() if success)

    def _chosen(
        self, step: int, problem_ids: Sequence[str], completions: Sequence[np.ndarray]
    ) -> dict[str, list[np.ndarray]]:
        """The rollouts to keep of each problem, whatever the order of the rows."""
        found: dict[str, list[np.ndarray]] = defaultdict(list)
        for problem_id, completion in zip(problem_ids, completions, strict=True):
            found[problem_id].append(np.array(completion, dtype=np.int32))
        chosen = {}
        for problem_id in sorted(found):
            rollouts = sorted(found[problem_id], key=lambda rollout: rollout.tobytes())
            if len(rollouts) > _KEPT:
                rng = np.random.default_rng(derive_seed(self.seed, "kept", step, problem_id))
                rollouts = [rollouts[row] for row in rng.choice(len(rollouts), _KEPT, replace=False)]
            chosen[problem_id] = rollouts
        return chosen


def _tokens(kept: dict[str, list[np.ndarray]]) -> int:
    return sum(len(rollout) for rollouts in kept.values() for rollout in rollouts)
