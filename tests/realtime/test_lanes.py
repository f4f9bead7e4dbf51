import asyncio
import threading

import pytest

from livetalk.realtime.lanes import Lane, Worker
from tests.realtime.conftest import run


def test_items_come_in_order_and_the_end_is_the_end():
    async def main():
        lane = Lane(10)
        lane.put_now("a")
        assert await lane.put("b", 1, lambda: True)
        assert await anext(lane) == "a" and await anext(lane) == "b"
        waiting = asyncio.ensure_future(anext(lane, "end"))
        await asyncio.sleep(0)
        lane.close()
        assert await waiting == "end"
        lane.put_now("c")
        assert not await lane.put("d", 1, lambda: True) and [item async for item in lane] == []

    run(main())


def test_a_full_lane_waits_for_its_reader():
    async def main():
        lane = Lane(2.0)
        for item in "ab":
            assert await lane.put(item, 1.0, lambda: True)
        third = asyncio.ensure_future(lane.put("c", 5.0, lambda: True))
        await asyncio.sleep(0.01)
        assert not third.done()
        lane.put_now("signal")
        assert await anext(lane) == "a" and await third
        assert [await anext(lane) for _ in range(3)] == ["b", "signal", "c"] and lane.waiting == 0

    run(main())


def test_what_is_no_longer_valid_stops_waiting():
    async def main():
        lane, valid = Lane(1.0), [True]
        await lane.put("a", 1.0, lambda: True)
        late = asyncio.ensure_future(lane.put("b", 1.0, lambda: valid[0]))
        await asyncio.sleep(0)
        valid[0] = False
        assert lane.drop(lambda item: item == "a") == ["a"]
        assert await late is False and lane.waiting == 0 and len(lane) == 0

    run(main())


def test_signals_push_out_the_oldest():
    lane = Lane(1.0, most=3)
    for number in range(10):
        lane.put_now(number)

    async def main():
        return [await anext(lane) for _ in range(3)]

    assert run(main()) == [7, 8, 9]


def test_a_worker_does_one_thing_after_the_other_and_ends():
    async def main():
        worker, order, gate = Worker("test"), [], threading.Event()
        first = asyncio.ensure_future(worker.run(lambda: (gate.wait(5), order.append(1))))
        second = asyncio.ensure_future(worker.run(lambda: order.append(2)))
        await asyncio.sleep(0.01)
        # One that has begun goes on, one that waits is taken back.
        first.cancel()
        second.cancel()
        await asyncio.sleep(0.01)
        worker.later(lambda: order.append(3))
        gate.set()
        await asyncio.gather(first, second, return_exceptions=True)
        await worker.close()
        return order

    assert run(main()) == [1, 3]


def test_a_workers_exception_arrives():
    async def main():
        worker = Worker("test")
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 / 0)
        await worker.close()

    run(main())
