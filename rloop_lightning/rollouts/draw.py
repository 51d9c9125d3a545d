"""Draws a limited number of a problem's rollouts, pseudo-random and independent of the order in which they come.

Each rollout has a digest of the seed and of its content. The rows with the smallest digests are drawn, so that a pass
over a pool keeps no more rows than it draws. Equal rollouts have equal digests and count as copies of one.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


def content_digest(key: bytes, problem_id: str, completion_ids: bytes, *unique: object) -> int:
    """A row's rank in a draw.

    Args:
        key: of the draw, made from its seed.
        problem_id: the problem.
        completion_ids: the tokens, int32.
        unique: what tells copies apart, if they are drawn separately.
    """
    content = hashlib.blake2b(completion_ids, key=key, digest_size=16)
    content.update(problem_id.encode())
    for value in unique:
        content.update(value if isinstance(value, bytes) else repr(value).encode())
    return int.from_bytes(content.digest(), "big")


class ProblemDraw(Generic[Row]):
    """Keeps the `limit` offered rows of a problem with the smallest digests (0: all), independent of their order.

    Args:
        limit: the number of rows.
        deduplicate: whether rows with equal digests are copies, of which one is kept.
        order: sort key among copies; the smallest is kept.
    """

    def __init__(self, limit: int, deduplicate: bool, order: Callable[[Row], Any]) -> None:
        self._limit = limit
        self._deduplicate = deduplicate
        self._order = order
        self._rows: dict[tuple[int, int], tuple[Row, int]] = {}  # (digest, serial) -> row, copies
        self._largest: list[tuple[int, int]] = []  # heap of the negated keys
        self._serial = itertools.count(1)

    def __len__(self) -> int:
        return len(self._rows)

    def offer(self, digest: int, row: Row, copies: int = 1) -> None:
        """Offer a row, or one that another draw kept of so many copies."""
        key = (digest, 0 if self._deduplicate else next(self._serial))
        if key in self._rows:
            # Every copy of a row that is finally kept is counted here, because its digest was never too large.
            held, before = self._rows[key]
            self._rows[key] = (min(held, row, key=self._order), before + copies)
            return
        negated = (-key[0], -key[1])
        if self._limit == 0 or len(self._rows) < self._limit:
            heapq.heappush(self._largest, negated)
        elif negated > self._largest[0]:
            dropped = heapq.heapreplace(self._largest, negated)
            del self._rows[-dropped[0], -dropped[1]]
        else:
            return
        self._rows[key] = (row, copies)

    def drop_above(self, key: tuple[int, int]) -> None:
        """Drop the rows whose digest and serial number are larger."""
        while self._largest and self._largest[0] < (-key[0], -key[1]):
            dropped = heapq.heappop(self._largest)
            del self._rows[-dropped[0], -dropped[1]]

    def ranks(self) -> Iterator[tuple[int, int]]:
        """Digest and serial number of each kept row."""
        return iter(self._rows)

    def sorted(self) -> list[tuple[Row, int]]:
        """Rows and how often each was offered, sorted by digest."""
        return [(row, copies) for _, row, copies in self.entries()]

    def entries(self) -> Iterator[tuple[int, Row, int]]:
        """Digests, rows and copies, sorted by digest; rows of equal digests in the order in which they came."""
        for (digest, _), (row, copies) in sorted(self._rows.items(), key=lambda item: item[0]):
            yield digest, row, copies


class ProblemDraws(Generic[Row]):
    """A draw of each problem, begun with its first row.

    Draws of parts of the rows can be merged: what the whole draw keeps, the draw of its part has kept too.

    Args:
        limit, deduplicate, order: of the draw from each problem.
    """

    def __init__(self, limit: int, deduplicate: bool, order: Callable[[Row], Any]) -> None:
        self._draws: dict[str, ProblemDraw[Row]] = defaultdict(lambda: ProblemDraw(limit, deduplicate, order))

    def offer(self, problem_id: str, digest: int, row: Row, copies: int = 1) -> None:
        self._draws[problem_id].offer(digest, row, copies)

    def entries(self) -> Iterator[tuple[int, Row, int]]:
        """Digests, rows and copies, sorted by problem and digest."""
        for _, draw in sorted(self._draws.items(), key=lambda item: item[0]):
            yield from draw.entries()


class SizedDraw(Generic[Row]):
    """Keeps `size` rows over all problems: those with the smallest digests among the rows of each problem's draw.

    So it takes the rollouts in random order, and skips those of a problem that has `limit` already. It never holds more
    than about twice `size` rows. Draws of parts of the rows can be merged, as those of `ProblemDraws`.

    Args:
        size: the number of rows.
        limit, deduplicate, order: of the draw from each problem.
    """

    def __init__(self, size: int, limit: int, deduplicate: bool, order: Callable[[Row], Any]) -> None:
        self._size = size
        self._new: Callable[[], ProblemDraw[Row]] = lambda: ProblemDraw(limit, deduplicate, order)
        self._draws: dict[str, ProblemDraw[Row]] = {}
        self._held = 0
        self._bound: int | None = None  # no row with a larger digest is among the smallest

    def offer(self, problem_id: str, digest: int, row: Row, copies: int = 1) -> None:
        if self._bound is not None and digest > self._bound:
            return
        draw = self._draws.setdefault(problem_id, self._new())
        before = len(draw)
        draw.offer(digest, row, copies)
        self._held += len(draw) - before
        if self._held > 2 * self._size:
            self._shrink()

    def entries(self) -> Iterator[tuple[int, Row, int]]:
        """Digests, rows and copies, sorted by problem and digest."""
        self._shrink()
        for _, draw in sorted(self._draws.items(), key=lambda item: item[0]):
            yield from draw.entries()

    def _shrink(self) -> None:
        """Drop what is not among the smallest."""
        if self._held > self._size:
            ranks = sorted(rank for draw in self._draws.values() for rank in draw.ranks())
            largest = ranks[self._size - 1] if self._size else (-1, 0)
            self._bound = largest[0]
            for draw in self._draws.values():
                draw.drop_above(largest)
            self._draws = {problem_id: draw for problem_id, draw in self._draws.items() if len(draw)}
            self._held = self._size
