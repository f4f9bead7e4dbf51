import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from livetalk.realtime.playback import Playback
from livetalk.realtime.talker import Caption, SpeechEnded, SpeechStarted


def playing(*turns: tuple[int, float]) -> Playback:
    playback = Playback()
    for turn, seconds in turns:
        playback.begin(turn)
        playback.caption(Caption(turn, "a ", 0.0))
        playback.caption(Caption(turn, "b", 1000.0))
        playback.push(seconds)
        playback.end(SpeechEnded(turn, True))
    return playback


def test_captions_come_when_they_are_heard():
    playback = playing((1, 2.0))
    assert playback.advance(2.0) == [] and not playback.audible
    assert playback.advance(1.9) == [SpeechStarted(1), Caption(1, "a ", 0.0)] and playback.audible
    assert playback.advance(1.0) == [] and playback.heard_ms(0.5) == {1: 1500.0}
    assert playback.advance(0.5) == [Caption(1, "b", 1000.0)]
    assert playback.advance(0.0) == [SpeechEnded(1, True)] and not playback.turns


def test_what_is_unheard_is_the_end_of_it():
    playback = playing((1, 2.0), (2, 3.0))
    assert playback.heard_ms(4.0) == {1: 1000.0, 2: 0.0}
    assert playback.heard_ms(1.0) == {1: 2000.0, 2: 2000.0}
    assert [event.turn for event in playback.advance(1.0)] == [1, 1, 1, 1, 2, 2, 2]


def test_what_was_heard_stays_heard():
    playback = playing((1, 2.0))
    playback.advance(0.5)
    assert playback.heard_ms(1.5) == {1: 1500.0}


def test_stopping_ends_what_began_and_keeps_what_comes_later():
    playback = playing((1, 2.0), (2, 3.0))
    playback.advance(4.0)
    assert playback.stop(1) == [SpeechEnded(1, False)] and [one.turn for one in playback.turns] == [2]
    assert playback.stop(2) == [] and not playback.turns


def test_an_answer_without_sound_begins_and_ends():
    playback = playing((1, 0.0))
    assert [type(event) for event in playback.advance(0.0)] == [SpeechStarted, Caption, Caption, SpeechEnded]


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 10)), min_size=1, max_size=8))
def test_each_answer_begins_and_ends_once_and_in_order(turns):
    playback, events = playing(*((turn, seconds) for turn, (seconds, _) in enumerate(turns, 1))), []
    total = sum(seconds for seconds, _ in turns)
    for step in [*np.linspace(total, 0, 1 + sum(steps for _, steps in turns)), 0.0]:
        events += playback.advance(float(step))
    for kind in (SpeechStarted, SpeechEnded):
        assert [event.turn for event in events if isinstance(event, kind)] == list(range(1, len(turns) + 1))
    assert len([event for event in events if isinstance(event, Caption)]) == 2 * len(turns)
