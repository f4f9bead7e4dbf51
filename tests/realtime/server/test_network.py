"""A bad network: everything between viewer and server goes through a proxy on this machine that delays and loses."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from aiortc import RTCSessionDescription

from tests.realtime.server.viewer import Viewer, fetch

HERE = "127.0.0.1"


class Side(asyncio.DatagramProtocol):
    """One end of the proxy: hands what comes to the other end, and learns who sends."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy, self.peer, self.other = proxy, None, None

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address) -> None:
        self.peer = address
        self.proxy.carry(self.other, data)


class Proxy:
    """delay, jitter: seconds; loss: a share. `cut` loses everything."""

    def __init__(self, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0) -> None:
        self.delay, self.jitter, self.loss = delay, jitter, loss
        self.cut = False
        self.carried = self.lost = 0
        self.lost_kinds: Counter[int] = Counter()  # by the type of payload, which RTP's head says openly
        self._dice = random.Random(0)

    async def __aenter__(self) -> Proxy:
        loop = asyncio.get_running_loop()
        pairs = [await loop.create_datagram_endpoint(lambda: Side(self), local_addr=(HERE, 0)) for _ in range(2)]
        (_, self.near), (_, self.far) = pairs
        self.near.other, self.far.other = self.far, self.near
        return self

    async def __aexit__(self, *_) -> None:
        for side in (self.near, self.far):
            side.transport.close()

    def carry(self, side: Side, data: bytes) -> None:
        if self.cut or self._dice.random() < self.loss:
            self.lost += 1
            if len(data) > 1 and data[0] >> 6 == 2:
                self.lost_kinds[data[1] & 0x7F] += 1
            return
        self.carried += 1
        wait = self.delay + self.jitter * self._dice.random()
        asyncio.get_running_loop().call_later(wait, self._send, side, data)

    def _send(self, side: Side, data: bytes) -> None:
        if side.peer is not None and not side.transport.is_closing():
            side.transport.sendto(data, side.peer)


def through(description: str, port: int) -> str:
    """The description with the one candidate that is the proxy's."""
    only = f"a=candidate:1 1 udp 2130706431 {HERE} {port} typ host\r\n"
    stripped = re.sub(r"a=candidate:.*\r\n", "", description)
    return stripped.replace("a=end-of-candidates\r\n", only + "a=end-of-candidates\r\n")


def kind_of(codec: str, viewer: Viewer) -> int:
    """The type of payload that the two ends agreed on."""
    return int(re.search(rf"a=rtpmap:(\d+) {codec}/", viewer.connection.remoteDescription.sdp)[1])


async def join(viewer: Viewer, proxy: Proxy) -> None:
    """Opens a session through the proxy."""
    offer = await viewer.offer()
    wish = {"sdp": through(offer, proxy.far.port), "face": "robin", "prompt": ""}
    ask = (viewer.address, "/api/sessions", "POST", json.dumps(wish).encode(), viewer.headers)
    status, _, body = await asyncio.to_thread(fetch, *ask)
    assert status == 201
    answer = json.loads(body)
    viewer.session = answer["session"]
    # The proxy sends to the server what it does not know the sender of yet.
    proxy.far.peer = (HERE, int(re.search(rf"a=candidate:.* {re.escape(HERE)} (\d+) typ", answer["sdp"])[1]))
    await viewer.connection.setRemoteDescription(
        RTCSessionDescription(through(answer["sdp"], proxy.near.port), "answer")
    )
    await viewer.event(lambda event: event["type"] == "hello", 20)


def test_delay_and_loss(serve):
    """120 ms there and back, with jitter, and one packet in 30 lost: every message arrives once and in order, picture
    and sound go on."""

    async def talk(address: str) -> None:
        async with Proxy(0.05, 0.02, 0.03) as proxy, Viewer(address) as viewer:
            await join(viewer, proxy)
            viewer.send("say", text="Speak.")
            for number in range(20):
                viewer.send("ping", id=number)
            ended = await viewer.event(lambda event: event["type"] == "answer" and not event["began"], 20)
            assert ended["complete"] and proxy.lost > 5
            pongs = [event["id"] for event in viewer.events if event["type"] == "pong"]
            assert pongs == list(range(20))
            said = [event["text"] for event in viewer.events if event["type"] == "caption" and event["who"] == "avatar"]
            assert "".join(said).strip() == "Turn 1 is being spoken. Turn 1 is being spoken."
            assert len(viewer.frames) > 0.7 * 16 * (viewer.frames[-1][0] - viewer.frames[0][0])
            heard = sum(len(samples) for _, _, samples in viewer.sounds) / 48_000
            sent = viewer.sounds[-1][1] - viewer.sounds[0][1] + len(viewer.sounds[-1][2]) / 48_000
            # With a packet of 20 ms the viewer's buffer gives up those it was holding back, four at most.
            missing = 5 * 0.02 * proxy.lost_kinds[kind_of("opus", viewer)]
            assert sent > 2 and heard > sent - missing - 0.06
            assert np.diff([pts for _, pts, _ in viewer.frames]).min() > 0

    with serve() as server:
        asyncio.run(talk(server.address))


def test_a_viewer_who_takes_nothing_slows_nobody(serve):
    """What is sent to one goes nowhere, and the other sees every frame."""

    async def watch(address: str) -> None:
        async with Proxy() as proxy, Viewer(address) as stuck, Viewer(address) as other:
            await join(stuck, proxy)
            await other.open()
            await other.event(lambda event: event["type"] == "hello")
            await stuck.event(lambda event: event["type"] == "figures")
            proxy.cut = True
            for viewer in (stuck, other):
                viewer.send("say", text="Speak.")
            first = len(other.frames)
            await asyncio.sleep(2)
            ticks = np.diff([pts for _, pts, _ in other.frames[first:]]) * 16
            assert len(ticks) > 24 and ticks.max() < 1.5
            assert not any(event["type"] == "ended" for event in other.events)

    with serve() as server:
        asyncio.run(watch(server.address))


@pytest.mark.slow
def test_a_viewer_who_is_cut_off_is_noticed(serve):
    """Without a word of parting: the place is free again within the time that ICE gives."""

    async def vanish(address: str) -> float:
        loop = asyncio.get_running_loop()
        async with Proxy() as proxy, Viewer(address) as viewer:
            await join(viewer, proxy)
            await asyncio.sleep(1)
            proxy.cut, began = True, loop.time()
            while json.loads((await asyncio.to_thread(fetch, address, "/api/setup"))[2])["free"] == 0:
                assert loop.time() - began < 60
                await asyncio.sleep(0.5)
            return loop.time() - began

    with serve(sessions=1, idle_s=600) as server:
        assert 5 < asyncio.run(vanish(server.address)) < 60
