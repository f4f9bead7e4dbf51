"""Servers in processes of their own, one of which is killed: what docs/scaling.md says of plain servers."""

import asyncio
import os
import signal
import time
from contextlib import ExitStack

import pytest

from tests.realtime.server.fleet.conftest import Watching, bare, process, routing, until
from tests.realtime.server.viewer import Viewer

pytestmark = pytest.mark.slow


def test_a_killed_server_is_told_of_at_once(tiny_family):
    async def act(address, pids):
        async with Viewer(address) as one, Viewer(address) as two, Viewer(address) as three:
            watching = {}
            for viewer in (one, two):
                assert (await viewer.open())[0] == 201
                await viewer.event(lambda event: True)
                watching[viewer] = await asyncio.to_thread(Watching, address, viewer.session)
            os.kill(pids[0], signal.SIGKILL)
            killed = time.monotonic()
            await asyncio.to_thread(until, lambda: any(stream.lost for stream in watching.values()), 5)
            [gone] = [viewer for viewer, stream in watching.items() if stream.lost]
            assert watching[gone].lost[0][0] - killed < 2
            assert (await three.open())[0] == 201
            await three.event(lambda event: True)
            for viewer in (three, two if gone is one else one):
                seen = len(viewer.events)
                viewer.send("say", text="Hello")
                await viewer.event(lambda event: event["type"] == "answer", 20, seen)

    with ExitStack() as stack:
        servers = [stack.enter_context(process(tiny_family)) for _ in range(2)]
        replicas = {str(pid): bare(address) for pid, address in servers}
        address = stack.enter_context(routing(replicas))
        asyncio.run(asyncio.wait_for(act(address, [pid for pid, _ in servers]), 60))
