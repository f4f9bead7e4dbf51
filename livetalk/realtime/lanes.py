"""A bounded stream between two tasks of one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_FREE = 256
"""Items without a size that may wait; more push out the oldest of them."""


class Lane(Generic[T]):
    """Items in order for one reader (async for). Those with a size wait for room, those without never do.

    room: the sum of sizes from which on `put` waits. One item may exceed it, so that any item fits.
    """

    def __init__(self, room: float) -> None:
        assert room > 0
        self.room = room
        self.waiting = 0.0
        self.closed = False
        self._items: deque[tuple[T, float]] = deque()
        self._changed = asyncio.Event()

    def put_now(self, item: T) -> None:
        """Adds an item without a size."""
        if self.closed:
            return
        free = [at for at, (_, size) in enumerate(self._items) if not size]
        if len(free) >= MOST_FREE:
            del self._items[free[0]]
        self._items.append((item, 0.0))
        self._change()

    async def put(self, item: T, size: float, valid: Callable[[], bool]) -> bool:
        """Adds an item once there is room; False, adding nothing, where the lane is closed or the item is no longer
        valid by then."""
        while not self.closed and valid() and self.waiting >= self.room:
            await self._changed_again()
        if self.closed or not valid():
            return False
        self._items.append((item, size))
        self.waiting += size
        self._change()
        return True

    def drop(self, stale: Callable[[T], bool]) -> list[T]:
        """Takes out items that wait; returns them. Whoever waits for room looks again whether its item is valid."""
        dropped = [item for item, _ in self._items if stale(item)]
        self._items = deque(entry for entry in self._items if not stale(entry[0]))
        self.waiting = sum(size for _, size in self._items)
        self._change()
        return dropped

    def close(self) -> None:
        """Nothing more is added, and nothing that waits is given out."""
        self.closed = True
        self._items.clear()
        self.waiting = 0.0
        self._change()

    def __aiter__(self) -> Lane[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self.closed:
                raise StopAsyncIteration
            await self._changed_again()
        item, size = self._items.popleft()
        # A sum of many small differences would drift away from 0.
        self.waiting = self.waiting - size if self._items else 0.0
        self._change()
        return item

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _changed_again(self) -> None:
        await self._changed.wait()
