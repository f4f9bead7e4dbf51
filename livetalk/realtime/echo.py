"""Echo: the user's own voice drives the avatar. A microphone or a file, no answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from livetalk.geometry import SAMPLE_RATE
from livetalk.media import read_audio
from livetalk.realtime.answer import Answer, checked_ms
from livetalk.realtime.ear import Ear
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import Heard, State, Talker

BEFORE_S = 0.1
"""Sound before a voice was noticed to begin that belongs to it: its first consonant."""


class EchoTalker(Talker):
    """Each stretch of voice is a turn; what is quiet between is left out, so that the avatar rests. It has no text."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__(config.ahead_s)
        self._ear = Ear(config.detector)
        self._turn = 0
        self._answer: Answer | None = None
        self._hearing = asyncio.Lock()

    async def __aexit__(self, *_) -> None:
        self._close()

    @property
    def turn(self) -> int:
        return self._turn

    async def say(self, text: str) -> int:
        raise ValueError("the echo talker repeats your voice and reads nothing: speak, or choose talker.kind=offline")

    async def hear(self, pcm: np.ndarray, rate: int) -> None:
        # One piece after the other: each may wait for room.
        async with self._hearing:
            new, voices = self._ear.push(pcm, rate)
            speaking = self._speaking()
            for voice in voices:
                if voice.started:
                    self._turn += 1
                    self._answer = Answer(self._turn, self._speech)
                    speaking, new = True, self._ear.sound(voice.at - round(BEFORE_S * SAMPLE_RATE))
                else:
                    await self._go_on(new, speaking)
                    self._end()
                    speaking = False
            await self._go_on(new, speaking)

    async def release(self) -> None:
        async with self._hearing:
            if self._ear.end():
                self._end()

    async def cancel(self, heard_ms: float | None = None, turn: int | None = None) -> Heard | None:
        checked_ms(heard_ms, 0.0)
        answer = self._answer
        if answer is None or answer.stopped or turn not in (None, answer.turn):
            return None
        heard = checked_ms(heard_ms, answer.stop())
        self._become(State.IDLE)
        return Heard(answer.turn, heard, "")

    def _speaking(self) -> bool:
        return self._answer is not None and self._answer.open()

    async def _go_on(self, sound: np.ndarray, speaking: bool) -> None:
        if speaking and len(sound) and self._speaking():
            self._become(State.SPEAKING)
            await self._answer.speak(sound, SAMPLE_RATE)

    def _end(self) -> None:
        if self._answer is not None:
            self._answer.end()
            self._become(State.IDLE)


async def hear_file(talker: Talker, path: str | Path, chunk_s: float = 0.02) -> None:
    """Lets a talker hear a sound file at the pace of a microphone. Raises ValueError for what is no sound file."""
    pcm = read_audio(path)
    loop = asyncio.get_running_loop()
    begun, step = loop.time(), round(chunk_s * SAMPLE_RATE)
    for at in range(0, len(pcm), step):
        await asyncio.sleep(max(0.0, begun + at / SAMPLE_RATE - loop.time()))
        await talker.hear(pcm[at : at + step], SAMPLE_RATE)
    await talker.release()
