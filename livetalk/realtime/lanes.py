"""Bounded streams between tasks of one event loop, and a thread to do slow things in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(Generic[T]):
    """Items in order for one reader (async for).

    room: the sum of sizes from which on `put` waits. One item may exceed it, so that any item fits.
    most: items that `put_now` leaves waiting; more push out the oldest. None keeps all.
    """

    def __init__(self, room: float, most: int | None = None) -> None:
        assert room > 0 and (most is None or most > 0)
        self.room, self.most = room, most
        self.waiting = 0.0
        self.closed = False
        self._items: deque[tuple[T, float]] = deque()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put_now(self, item: T) -> None:
        """Adds an item that has no size, without waiting; nothing where the lane is closed."""
        if self.closed:
            return
        if self.most is not None and len(self._items) >= self.most:
            self._items.popleft()
        self._items.append((item, 0.0))
        self._change()

    async def put(self, item: T, size: float, valid: Callable[[], bool]) -> bool:
        """Adds an item once there is room; False, adding nothing, where the lane is closed or the item is no longer
        valid by then."""
        while not self.closed and valid() and self.waiting >= self.room:
            await self._changed.wait()
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
            await self._changed.wait()
        item, size = self._items.popleft()
        # A sum of many differences would drift away from 0.
        self.waiting = self.waiting - size if self._items else 0.0
        self._change()
        return item

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Worker:
    """One thread for one job after the other; it starts with the first and ends with `close`."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, job: Callable[[], T]) -> T:
        """The job's result. Cancelled, it takes back a job that has not begun; one that has goes on, unobserved."""
        return await asyncio.wrap_future(self._pool.submit(job))

    def later(self, job: Callable[[], object]) -> None:
        """Does it after the jobs before, without anybody waiting."""
        self._pool.submit(job)

    async def close(self) -> None:
        """Waits for what was begun, off the loop; then the thread is gone."""
        try:
            await self.run(lambda: None)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
