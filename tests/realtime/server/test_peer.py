"""Offers of any kind, and datagrams of any kind at the ports of a connection."""

from __future__ import annotations

import asyncio
import random
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livetalk.media import SYNTHETIC
from livetalk.realtime.server.peer import MOST_CANDIDATES, Peer, check_offer, ice_servers, marked
from livetalk.realtime.server.playout import Playout
from livetalk.realtime.server.protocol import Refused
from livetalk.realtime.server.settings import Network
from livetalk.streaming.player import Player
from tests.realtime.server.test_playout import STILL
from tests.realtime.server.viewer import Viewer


@pytest.fixture(scope="module")
def offer() -> str:
    """A good one."""

    async def make() -> str:
        async with Viewer("") as viewer:
            return await viewer.offer()

    return asyncio.run(make())


def answered(offer: str) -> str | None:
    """The answer, or None where the offer was refused; nothing is left behind in either case."""

    async def answer() -> str | None:
        playout = Playout(Player(), STILL, lambda frame: frame)
        peer = Peer(playout, Network(addresses=("127.0.0.1",)), True, lambda: None, lambda data: None)
        try:
            return await peer.answer(offer)
        except Refused as refused:
            assert refused.code in ("bad_offer", "too_long") and 400 <= refused.status < 500
            return None
        finally:
            await peer.close()

    return asyncio.run(asyncio.wait_for(answer(), 20))


def test_an_answer_is_marked_and_has_one_codec(offer):
    answer = answered(offer)
    assert f"\r\ns={SYNTHETIC}\r\n" in answer and marked(answer) == answer
    video = answer[answer.index("m=video") :].partition("m=")[2]
    assert "VP8" in video and "H264" not in video
    assert set(re.findall(r"a=candidate:\S+ \d udp \d+ (\S+)", answer)) == {"127.0.0.1"}


def test_offers_that_would_cost_too_much(offer):
    section = offer[offer.index("m=audio") :]
    candidate = "a=candidate:1 1 udp 1 192.0.2.1 {} typ host\r\n"
    many = offer.replace(
        "a=end-of-candidates\r\n",
        "".join(candidate.format(n) for n in range(MOST_CANDIDATES + 1)) + "a=end-of-candidates\r\n",
        1,
    )
    for bad in (offer + section, offer[: offer.index("m=application")], many, "", "v=0\r\n", "a" * 70_000, "\ud800"):
        with pytest.raises(Refused):
            check_offer(bad)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 6))
def test_offers_that_were_tampered_with(offer, seed, changes):
    """Lines left out, doubled, moved, cut, or with other letters in them."""
    dice, lines = random.Random(seed), offer.split("\r\n")
    for _ in range(changes):
        at = dice.randrange(len(lines))
        line = lines[at]
        kind = dice.randrange(5)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(dice.randrange(len(lines)), line)
        elif kind == 2:
            lines[at] = line[: dice.randrange(len(line) + 1)]
        elif kind == 3 and line:
            place = dice.randrange(len(line))
            lines[at] = line[:place] + chr(dice.choice([0, 32, 45, 48, 57, 65, 0x20AC])) + line[place + 1 :]
        else:
            lines[at] = re.sub(r"\d+", lambda found: str(dice.choice([0, -1, 2**40, found[0]])), line)
        if not lines:
            break
    answered("\r\n".join(lines))


def test_servers_of_the_settings():
    assert ice_servers(Network()) == []
    turn = Network(stun="stun:a.example:3478", turn="turn:b.example:3478", turn_user="u", turn_password="p")
    stun, relay = ice_servers(turn)
    assert stun.urls == "stun:a.example:3478" and (relay.username, relay.credential) == ("u", "p")


def test_datagrams_of_any_kind(serve):
    """Nothing happens, whatever they begin with: STUN, DTLS and RTP each have their own first bytes."""

    async def watch(address: str) -> None:
        async with Viewer(address) as viewer:
            _, answer = await viewer.open()
            await viewer.event(lambda event: event["type"] == "hello")
            dice = random.Random(0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                port = int(re.search(r"a=candidate:.* 127\.0\.0\.1 (\d+) typ", answer["sdp"])[1])
                for first in (0, 1, 20, 22, 64, 80, 128, 129, 200, 255):
                    for size in (0, 1, 11, 20, 60, 1200):
                        data = bytes([first, dice.choice([0, 200, 201, 205, 253])]) + dice.randbytes(size)
                        sender.sendto(data, ("127.0.0.1", port))
                        await asyncio.sleep(0)
            viewer.send("ping", id=1)
            await viewer.event(lambda event: event["type"] == "pong")
            count = len(viewer.frames)
            await asyncio.sleep(0.6)
            assert len(viewer.frames) > count + 4 and not any(event["type"] == "ended" for event in viewer.events)

    with serve() as server:
        asyncio.run(watch(server.address))
