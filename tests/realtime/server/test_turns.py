"""Fair turns: first come, first served, and nobody waits for more than one block of each other one."""

from __future__ import annotations

import threading
import time

import numpy as np

from livetalk.realtime.server.turns import SharedSession, Turns, Turnstile
from livetalk.streaming.live import Live
from tests.streaming.conftest import FACE, speech


def test_first_come_first_served():
    turnstile, order, started = Turnstile(), [], []

    def pass_through(number: int) -> None:
        started.append(number)
        with turnstile:
            order.append(number)

    threads = []
    with turnstile:
        for number in range(6):
            threads.append(threading.Thread(target=pass_through, args=(number,)))
            threads[-1].start()
            while len(turnstile._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(5)
    assert order == list(range(6)) and not turnstile._taken


def test_who_comes_again_stands_behind_all_who_wait():
    turnstile, order = Turnstile(), []

    def work(name: str) -> None:
        for _ in range(20):
            with turnstile:
                order.append(name)
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    middle = order[6:-6]
    assert all(set(middle[at : at + 5]) == set("abc") for at in range(len(middle) - 5))


def test_an_exception_gives_the_turn_back():
    turnstile = Turnstile()
    for _ in range(2):
        try:
            with turnstile:
                raise KeyError
        except KeyError:
            assert not turnstile._taken


def test_sessions_render_one_at_a_time_and_the_same_as_alone(performer):
    """Three sessions with all their sound at once: what each renders is what it renders alone, blocks come in turn, and
    no two networks run at the same moment."""
    running, most, order, count = set(), [], [], threading.Lock()
    plain = SharedSession._job

    class Watched(SharedSession):
        def _job(self, fill):
            found = plain(self, fill)
            if found is not None:
                order.append(self.seed)
            return found

    def watch(session: SharedSession) -> SharedSession:
        denoise = session._take.denoise

        def watched(*arguments):
            with count:
                running.add(threading.get_ident())
                most.append(len(running))
            try:
                time.sleep(0.002)
                return denoise(*arguments)
            finally:
                with count:
                    running.discard(threading.get_ident())

        session._take.denoise = watched
        return session

    turns, frames = Turns(), {}
    lives = [Live(watch(Watched(performer, FACE, "nods", seed, None, None, None, turns))) for seed in range(3)]
    for live in lives:
        live.push_audio(speech(6 * 16_000))
        live.finish()

    def drain(seed: int) -> None:
        frames[seed] = np.concatenate([block.frames for block in lives[seed]])

    drains = [threading.Thread(target=drain, args=(seed,)) for seed in range(3)]
    for thread in drains:
        thread.start()
    for thread in drains:
        thread.join(20)
    for live in lives:
        live.close()
    assert max(most) == 1 and len(frames) == 3
    middle = order[6:-6]
    assert all(len(set(middle[at : at + 5])) == 3 for at in range(len(middle) - 4)), order
    alone = performer.session(FACE, "nods", 1)
    alone.push_audio(speech(6 * 16_000))
    alone.flush()
    assert np.array_equal(frames[1], np.concatenate([block.frames for block in alone]))
