"""Frames that wait to be shown: replaced, dropped, pulled."""

import numpy as np

from livetalk.geometry import SAMPLES_PER_FRAME
from livetalk.streaming.player import Player
from livetalk.streaming.session import Block
from livetalk.streaming.take import Ticket


def block(first: int, count: int, value: int = 0, ticket: Ticket | None = None) -> Block:
    frames = np.full((count, 2, 2, 3), value, np.uint8)
    sound = np.repeat(np.arange(first, first + count, dtype=np.float32), SAMPLES_PER_FRAME)
    return Block(frames, sound, first, False, ticket or Ticket())


def pulled(player: Player) -> list[tuple[int, int]]:
    """Index and value of all frames that wait."""
    out = []
    while (shown := player.pull()) is not None:
        assert (shown.sound == shown.index).all() and len(shown.sound) == SAMPLES_PER_FRAME
        out.append((shown.index, int(shown.frame[0, 0, 0])))
    return out


def test_frames_come_in_order_and_the_position_stays_where_they_end():
    player = Player()
    assert player.pull() is None and player.position() == 0 and player.lead == 0
    player.put(block(0, 2, 1))
    player.put(block(2, 3, 2))
    assert player.lead == 5 / 16
    assert pulled(player) == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)]
    assert player.pull() is None and player.position() == 5 / 16


def test_a_block_replaces_what_waits_from_its_first_frame_on():
    player = Player()
    player.put(block(0, 4, 1))
    player.put(block(4, 4, 1))
    player.pull()
    player.put(block(3, 2, 2))
    assert pulled(player) == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_dropping():
    player = Player()
    player.put(block(0, 4, 1))
    player.put(block(4, 4, 1))
    player.drop(6)
    assert player.lead == 6 / 16
    player.pull(), player.pull()
    player.drop(1)
    assert player.pull() is None and player.position() == 2 / 16
    player.put(block(1, 3, 2))
    assert pulled(player) == [(2, 2), (3, 2)], "what was shown is not shown again"


def test_what_was_taken_back_on_the_way_is_not_shown():
    player, ticket = Player(), Ticket()
    player.put(block(0, 2, 1))
    late = block(2, 4, 1, ticket)
    ticket.expire(4)
    ticket.expire(5)
    player.put(late)
    assert pulled(player) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    ticket.expire(2)
    player.put(block(4, 1, 2))
    player.put(late)
    assert pulled(player) == [(4, 2)]
