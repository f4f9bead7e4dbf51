"""Two replicas on Ray Serve, on CPUs: sessions stick, a killed replica is told of within two seconds, another comes."""

import asyncio
import json
import os
import signal
import socket
import time
from importlib.util import find_spec

import pytest

from livetalk.commands.serve_fleet import deployed
from livetalk.realtime.server.fleet.settings import FleetRun
from livetalk.realtime.server.settings import ServeRun
from livetalk.streaming.pace import StreamConfig
from tests.realtime.server.fleet.conftest import Watching, there, until
from tests.realtime.server.viewer import Viewer, fetch
from tests.streaming.conftest import TINY

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(find_spec("ray") is None, reason="pip install livetalk[ray]"),
]
TOKEN = "a-token-hard-to-guess"
GIVEN = {"Authorization": f"Bearer {TOKEN}"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def address(tiny_family):
    server = ServeRun(
        model=str(tiny_family),
        device="cpu",
        port=free_port(),
        token=TOKEN,
        size=64,
        geometry=TINY,
        stream=StreamConfig(lead_ms=900, reserve_ms=600),
    )
    with deployed(FleetRun(replicas=2, gpus=0, cpus=0.5, server=server)) as address:
        until(lambda: there(address, TOKEN) == 2, 60)
        yield address


def replicas_of() -> dict[str, int]:
    """Process ids of the two replicas, by name."""
    from ray import serve

    handle, found = serve.get_deployment_handle("server", "livetalk"), {}
    until(lambda: found.update([handle.pid.remote().result(timeout_s=20)[::-1]]) or len(found) == 2, 60)
    return found


async def spoken(viewer: Viewer) -> None:
    """It says something and is answered, over its own connection."""
    after = len(viewer.events)
    viewer.send("say", text="Hello")
    await viewer.event(lambda event: event["type"] == "caption" and event["who"] == "avatar", 30, after)


async def left(address: str, viewer: Viewer) -> tuple[int, dict]:
    path = f"/api/sessions/{viewer.session}"
    status, _, body = await asyncio.to_thread(fetch, address, path, "DELETE", None, GIVEN)
    return status, json.loads(body or b"{}")


def test_sessions_stick_and_a_killed_replica_is_told_of(address):
    async def act():
        async with Viewer(address, TOKEN) as one, Viewer(address, TOKEN) as two, Viewer(address, TOKEN) as three:
            watching = {}

            def lost() -> list[Viewer]:
                return [viewer for viewer, stream in watching.items() if stream.lost]

            for viewer in (one, two):
                assert (await viewer.open())[0] == 201
                assert (await viewer.event(lambda event: True, 30))["session"] == viewer.session
                await spoken(viewer)
                watching[viewer] = await asyncio.to_thread(Watching, address, viewer.session, TOKEN)
            before = await asyncio.to_thread(replicas_of)
            killed = next(iter(before))
            os.kill(before[killed], signal.SIGKILL)
            began = time.monotonic()
            await asyncio.to_thread(until, lambda: one in lost() or two in lost(), 5)
            # They were spread, so that exactly one of them was there.
            [gone] = lost()
            stays = two if gone is one else one
            when, error = watching[gone].lost[0]
            assert error["error"] == "server_lost" and when - began < 2
            print(f"told {1000 * (when - began):.0f} ms after the kill")
            status, told = await left(address, gone)
            assert status == 410 and told["error"] == "server_lost"
            # Who comes now goes to the other, where the session goes on.
            assert (await three.open())[0] == 201
            await three.event(lambda event: True, 30)
            await spoken(three)
            await spoken(stays)
            assert lost() == [gone]
            # Serve starts another in its place.
            await asyncio.to_thread(until, lambda: there(address, TOKEN) == 2, 90)
            after = await asyncio.to_thread(replicas_of)
            assert killed not in after and len(after.keys() & before.keys()) == 1
            assert (await left(address, stays))[0] == 204
            assert (await stays.event(lambda event: event["type"] == "ended"))["reason"] == "left"

    asyncio.run(asyncio.wait_for(act(), 180))


def test_the_page_comes_through_the_proxy_and_the_token_is_asked_for(address):
    assert b"<html" in fetch(address, "/")[2]
    assert fetch(address, "/api/setup")[0] == 401
    setup = json.loads(fetch(address, "/api/setup", headers=GIVEN)[2])
    assert setup["watch"] is True and setup["sessions"] == 4
