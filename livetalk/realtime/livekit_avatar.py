"""A Performer as the avatar of LiveKit Agents: sound in, timed frames and their sound out (its `VideoGenerator`).

    video = AvatarVideo(partial(performer.session, image, prompt), still)
    runner = avatar_runner(room, receiver, video)      # livekit.agents.voice.avatar.AvatarRunner
    await runner.start()
    ...
    await runner.aclose(); await video.aclose()

What LiveKit's runner expects, and what follows for us:

- It adds up the sound it is given, and at a segment's end reports the sum as the position. So only sound that was
  pushed goes out, never the silence around and between it; the track is silent by itself where nothing comes.
- It remembers one segment at a time. So `push_audio` of a segment's end returns when the end was played: what follows
  waits on the runner's side, where an interruption clears it, too.
- It queues what it is given for up to 100 ms and does not clear that queue. So frames come at their own pace, each with
  its sound when it is due, and next to nothing waits there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import numpy as np

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from livetalk.realtime.lanes import Worker
from livetalk.streaming.live import Live
from livetalk.streaming.pace import Clock
from livetalk.streaming.player import Player
from livetalk.streaming.session import Hold, Session, Show
from livetalk.streaming.sound import Resampler, mono

if TYPE_CHECKING:
    from livekit import rtc
    from livekit.agents.voice.avatar import AudioReceiver, AudioSegmentEnd, AvatarRunner

AHEAD_S = 3.0
"""Seconds of sound that are given to the stream ahead of what is heard: more than it renders ahead."""
EARLY_S = 0.025
"""Sound that continues goes out that much before it is due, so that the track does not run dry between two frames."""
LATE_S = 0.5
"""When a frame is later than that (nobody took the one before), all that follow are, too."""


class AvatarVideo:
    """See the module. Push, clear and iterate in one event loop; one reader.

    session: makes the stream, called with the clock, hold and show of a player. still: uint8 [H, W, 3], shown until the
    stream begins. finish: what is done to each frame, which gives it the size of the video.
    """

    def __init__(
        self,
        session: Callable[[Clock, Hold, Show], Session],
        still: np.ndarray,
        finish: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
    ) -> None:
        self._player = Player()
        self._finish, self._frame = finish, finish(still)
        self._live = Live(session(clock=self._player.position, hold=self._player.drop, show=self._player.put))
        self._worker = Worker("livetalk-interrupt")
        self._feeding: asyncio.Task | None = None
        self._resampler = Resampler()
        self._changed = asyncio.Event()
        # A new life begins with every interruption: who waited in the one before gives up. Interruptions under way.
        self._life = self._clearing = 0
        # Of the segment under way: whether it has begun, and whether its end was pushed. Samples since the last
        # interruption that were given to the stream, and that went out.
        self._open = self._ended = False
        self._given = self._heard = 0
        # Of the frame that is shown: its sound and how many samples that is, and whether that fills it.
        self._sound: rtc.AudioFrame | None = None
        self._last, self._sounding = 0, False
        # Whether the reader has sound that it has not come back from.
        self._handed = False
        self._closed = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the video."""
        return self._frame.shape[:2]

    # What LiveKit's runner calls

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """Adds sound of any rate and number of channels, waiting while AHEAD_S of it are still to be heard; or ends the
        segment, waiting until that was played. Both give up when the segment is cleared."""
        from livekit import rtc

        if isinstance(frame, rtc.AudioFrame):
            await self._push(frame)
        else:
            await self._end()

    async def clear_buffer(self) -> None:
        """Stops the segment under way, which is then over without an end. No sound of it goes out any more, from here
        on; takes up to a block's time, in which the picture rests, and goes on, silent, after it."""
        self._life += 1
        self._wake()
        if not (self._open or self._clearing):
            return
        self._open = self._ended = False
        self._clearing += 1
        try:
            await self._worker.run(self._live.interrupt)
            # The runner counts sound when it comes back from it, and must have done so before it reads its count.
            while self._handed and not self._closed:
                await self._changed.wait()
        finally:
            self._clearing -= 1
            self._resampler.reset()
            self._given = self._heard = 0
            self._wake()

    def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Frames at FPS, until `aclose`, and between them the sound that belongs to the frame before (or, where it
        continues, to the one that follows in a moment), and the ends of segments. Raises what made the stream fail."""
        return self._play()

    async def aclose(self) -> None:
        """Lets go of everything; takes up to a block's time. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._life += 1
        self._wake()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._live.close)
        await self._worker.close()

    # Sound in

    async def _push(self, frame: rtc.AudioFrame) -> None:
        life = self._life
        while self._life == life and (self._clearing or self._live.unheard > AHEAD_S):
            await self._changed.wait()
        # Nothing is awaited from here on, so that no interruption comes between.
        if self._life == life:
            pcm = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
            self._open = True
            self._give(self._resampler.push(mono(pcm, frame.sample_rate), frame.sample_rate))

    async def _end(self) -> None:
        life = self._life
        while self._life == life and self._clearing:
            await self._changed.wait()
        # The end of a segment that was cleared comes all the same, and ends nothing.
        if self._life != life or not self._open:
            return
        self._give(self._resampler.flush())
        self._live.flush()
        self._ended = True
        while self._life == life and self._ended:
            await self._changed.wait()

    def _give(self, sound: np.ndarray) -> None:
        if len(sound):
            self._live.push_audio(sound)
            self._given += len(sound)

    # Frames out

    async def _play(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        from livekit.agents.voice.avatar import AudioSegmentEnd

        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed())
        loop = asyncio.get_running_loop()
        origin, tick = loop.time(), 0
        while not self._closed:
            origin += late if (late := loop.time() - origin - tick / FPS) > LATE_S else 0.0
            due, shown = origin + tick / FPS, False
            if self._sounding:
                await _sleep_until(due - EARLY_S)
                if (shown := self._next()) and self._sound is not None:
                    self._handed = True
                    yield self._sound
                    self._taken()
            await _sleep_until(due)
            life = self._life
            late_sound = not shown and self._next() and self._sound is not None
            yield self._picture()
            if late_sound and self._life == life:
                self._handed = True
                yield self._sound
                self._taken()
            tick += 1
            if self._ended and self._heard == self._given:
                life = self._life
                await _sleep_until(due + self._last / SAMPLE_RATE)
                if self._life == life:
                    yield AudioSegmentEnd()
                    self._over(life)
            self._wake()

    def _taken(self) -> None:
        self._handed = False
        self._wake()

    def _over(self, life: int) -> None:
        """The end was taken: whoever waits for it goes on with the next segment."""
        if self._life == life:
            self._open = self._ended = False

    def _next(self) -> bool:
        """Goes on to the next frame, unless there is none: the last one stays, without sound."""
        if self._feeding.done() and not self._closed:
            self._feeding.result()
        shown = None if self._clearing else self._player.pull()
        self._last, self._sound = 0, None
        if shown is None:
            self._sounding = False
            return False
        self._frame = self._finish(shown.frame)
        # The first part of a frame's sound is what was pushed, and the rest is silence: sound that does not continue
        # what was before begins with a frame.
        heard = self._given - round(self._live.unheard * SAMPLE_RATE)
        self._last, self._heard = heard - self._heard, heard
        assert 0 <= self._last <= SAMPLES_PER_FRAME, f"{self._last} samples of a frame are said to be heard"
        self._sounding = self._last == SAMPLES_PER_FRAME
        self._sound = _audio(shown.sound[: self._last]) if self._last else None
        return True

    def _picture(self) -> rtc.VideoFrame:
        from livekit import rtc

        height, width = self.size
        return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, self._frame.tobytes())

    async def _feed(self) -> None:
        async for block in self._live:
            self._player.put(block)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _audio(sound: np.ndarray) -> rtc.AudioFrame:
    """float32 [n] at SAMPLE_RATE."""
    from livekit import rtc

    pcm = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)
    return rtc.AudioFrame(pcm.tobytes(), SAMPLE_RATE, 1, len(pcm))


async def _sleep_until(time: float) -> None:
    await asyncio.sleep(max(0.0, time - asyncio.get_running_loop().time()))


def avatar_runner(room: rtc.Room, audio: AudioReceiver, video: AvatarVideo) -> AvatarRunner:
    """LiveKit's runner, which publishes `video` in `room` as it speaks what `audio` receives: DataStreamAudioReceiver
    from an agent elsewhere, QueueAudioOutput from one in this process."""
    from livekit.agents.voice.avatar import AvatarOptions, AvatarRunner, VideoGenerator

    # It has the interface; deriving from it would need the package wherever this module is imported.
    VideoGenerator.register(AvatarVideo)
    height, width = video.size
    options = AvatarOptions(width, height, FPS, SAMPLE_RATE, 1)
    return AvatarRunner(room, audio_recv=audio, video_gen=video, options=options)
