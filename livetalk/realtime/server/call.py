"""One viewer's session: a live stream, a talker and a connection, joined, and what ends them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from livetalk.geometry import FPS
from livetalk.media import SYNTHETIC, fit_image, to_pixels
from livetalk.realtime.conversation import Conversation
from livetalk.realtime.server import protocol
from livetalk.realtime.server.faces import Faces
from livetalk.realtime.server.mark import Finish
from livetalk.realtime.server.metrics import Metrics
from livetalk.realtime.server.peer import Peer, check_offer
from livetalk.realtime.server.playout import SEND_RATE, Overrun, Playout
from livetalk.realtime.server.protocol import Refused
from livetalk.realtime.server.settings import ServeRun
from livetalk.realtime.server.stages import Stopwatch, Watched, audible
from livetalk.realtime.server.turns import SharedSession, Turns
from livetalk.realtime.talker import Caption, Failed, Heard, SpeechEnded, SpeechStarted, StateChanged, UserCaption
from livetalk.realtime.talker import Talker as TalkerType
from livetalk.streaming.live import Live
from livetalk.streaming.performer import Performer
from livetalk.streaming.player import Player, Shown

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_WAITING = 16
"""Messages of a viewer that may wait to be carried out."""
MOST_REFUSED = 100
"""Messages of a viewer that may be refused before the session ends."""
BURST_S = 2.0
LOOK_S = 0.25
TAIL_S = 0.2
"""How long the voice of a viewer who let go of the button is still on its way."""
LAST_WORD_S = 0.15
"""For the last message to leave before the connection closes."""

REASONS = {
    "left": "you left",
    "idle": "nothing was said for a long time",
    "unconnected": "no connection for picture and sound came about: the network between may block UDP",
    "longest": "the longest time of a session is over",
    "closing": "the server is being shut down",
    "misuse": "too many messages that are none",
    "stuck": "the connection does not take what is sent",
    "talker": "the voice of the avatar is gone",
    "failed": "something went wrong on the server",
}


class MakesTalkers(Protocol):
    """livetalk.realtime.talkers.Talkers, as far as it is needed here."""

    def talker(self) -> TalkerType: ...


@dataclass(frozen=True)
class Studio:
    """What all sessions share. pool: threads for what takes longer than a tick. prompt: where a viewer gives none."""

    run: ServeRun
    performer: Performer
    talkers: MakesTalkers
    faces: Faces
    metrics: Metrics
    turns: Turns
    pool: Executor
    prompt: str


class Call:
    """See the module. Call `open`, then `run`, which returns why it is over; `close` in any case."""

    def __init__(self, name: str, studio: Studio) -> None:
        self.name, self.studio = name, studio
        self.began = time.monotonic()
        self.reason: str | None = None
        self._message = ""
        self._ending = asyncio.Event()
        self._parts = AsyncExitStack()
        self._commands: asyncio.Queue[tuple[float, protocol.Message]] = asyncio.Queue(MOST_WAITING)
        self._watch = Stopwatch()
        self._microphone, self._talking = "off", False
        self._active = self._allowance_at = time.monotonic()
        self._allowance = BURST_S * studio.run.limits.messages_per_s
        self._refused = self._frames = 0
        self._silent = False

    # Beginning and end

    async def open(self, offer: str, face: str, prompt: str) -> str:
        """The answer to an SDP offer. Raises Refused; then, too, `close` must follow."""
        studio, run = self.studio, self.studio.run
        check_offer(offer)
        picture = studio.faces.find(face)
        player, geometry = Player(), studio.performer.geometry
        finish = Finish(geometry.height, geometry.width, run.size, run.mark)
        still = await self._aside(partial(_still, picture, geometry.height, geometry.width))
        self._player, self._playout = player, Playout(player, still, finish, self._seen)
        make = partial(
            *(SharedSession, studio.performer, picture, prompt, run.seed),
            *(player.position, self._playout.drop, self._playout.show, studio.turns),
        )
        self._live = Live(await self._aside(make))
        self._parts.push_async_callback(self._aside, self._live.close)
        stage = Watched(self._live, lambda: self._watch.mark("speak", time.monotonic()))
        self._conversation = Conversation(studio.talkers.talker(), stage)
        await self._parts.enter_async_context(self._conversation)
        self._peer = Peer(self._playout, run.network, run.loopback, self._opened, self._received)
        self._parts.push_async_callback(self._peer.close)
        return await self._peer.answer(offer)

    async def run(self) -> str:
        """Carries the session until it is over; returns one of REASONS. What goes wrong in it stays in it."""
        work = (self._feed, self._show, self._tell, self._obey, self._hear, self._look, self._report)
        tasks = [asyncio.create_task(part()) for part in work]
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            self._blame(tasks)
            self._send(protocol.Ended(self.reason, self._message))
            self._silent = True
            await asyncio.sleep(LAST_WORD_S)
        finally:
            for task in (*tasks, ending):
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)
        return self.reason

    def end(self, reason: str, message: str = "") -> None:
        """Ends it, if it has not ended; the viewer is told one of REASONS, or the message."""
        if self.reason is None:
            self.reason, self._message = reason, message or REASONS[reason]
            self._ending.set()

    def told(self) -> dict[str, int]:
        """For the log."""
        return {"frames": self._frames, "repeated": self._playout.repeated, "late": self._playout.late}

    async def close(self) -> None:
        """Lets go of everything; takes up to a block's time. Safe to call again."""
        await self._parts.aclose()

    def _blame(self, tasks: list[asyncio.Task]) -> None:
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, Overrun):
                    self.end("stuck")
                else:
                    log.error("a session failed", exc_info=error, extra={"session": self.name})
                    self.end("failed")
        self.end("failed")

    async def _aside(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.studio.pool, job)

    # Parts, each a task

    async def _feed(self) -> None:
        """Blocks from the stream to the player."""
        async for block in self._live:
            self._player.put(block)
            self.studio.metrics.blocks.labels("silent" if block.silent else "speech").inc()
            if audible(block.sound):
                self._watch.mark("perform", time.monotonic())

    async def _show(self) -> None:
        """Frames from the player to the connection, from when it is there."""
        await self._peer.connected.wait()
        await self._playout.run()

    def _seen(self, shown: Shown | None, at: float) -> None:
        metrics = self.studio.metrics
        if shown is None:
            metrics.repeated.inc()
            return
        self._frames += 1
        metrics.frames.inc()
        # The event loop's clock is the monotonic one.
        if audible(shown.sound) and self._watch.mark("send", at):
            metrics.first_frame.observe(self._watch.total)

    async def _tell(self) -> None:
        """What happens in the conversation, to the page."""
        async for event in self._conversation.events():
            self._active = time.monotonic()
            if isinstance(event, StateChanged):
                self._send(protocol.StateIs(event.state.value))
            elif isinstance(event, UserCaption):
                self._send(protocol.CaptionIs("you", event.turn, event.text))
            elif isinstance(event, Caption):
                self._send(protocol.CaptionIs("avatar", event.turn, event.text))
            elif isinstance(event, SpeechStarted):
                self._send(protocol.AnswerIs(event.turn, True, False))
            elif isinstance(event, SpeechEnded):
                self._send(protocol.AnswerIs(event.turn, False, event.complete))
            elif isinstance(event, Heard):
                self.studio.metrics.interruptions.inc()
                self._send(protocol.HeardIs(event.turn, round(event.heard_ms), event.text))
            elif isinstance(event, Failed):
                self._send(protocol.Problem("talker", event.message, not event.retryable))
                if not event.retryable:
                    self.end("talker", event.message)

    async def _obey(self) -> None:
        """What the page asks for, one after the other."""
        while True:
            at, message = await self._commands.get()
            try:
                await self._carry_out(message, at)
            except Refused as refused:
                self._refuse(refused)
            except ValueError as error:
                self._refuse(Refused("refused", str(error)))
            else:
                self.studio.metrics.messages.labels(message.type).inc()

    async def _carry_out(self, message: protocol.Message, at: float) -> None:
        if isinstance(message, protocol.Say):
            self._watch.start(at)
            await self._conversation.say(message.text)
        elif isinstance(message, protocol.Interrupt):
            await self._interrupt(at)
        elif isinstance(message, protocol.Microphone):
            await self._listen(message.mode)
        elif isinstance(message, protocol.Talk):
            await self._talk(message.on, at)
        elif isinstance(message, protocol.Face):
            picture = self.studio.faces.find(message.face)
            await self._conversation.interrupt()
            await self._aside(partial(self._live.restart, picture))
        elif isinstance(message, protocol.Prompt):
            await self._aside(partial(self._live.set_prompt, message.text))
        self._send(protocol.Done(message.type))

    async def _interrupt(self, at: float, talking: bool = False) -> None:
        stopped = await self._conversation.interrupt() is not None
        # Who began to talk is heard from here on, not only when the last picture of the answer is gone.
        self._talking = self._talking or talking
        await self._playout.settled()
        if stopped:
            self.studio.metrics.interrupting.observe(time.monotonic() - at)

    async def _talk(self, on: bool, at: float) -> None:
        if self._microphone != "push":
            raise Refused("not_now", "the button works with the microphone in mode push")
        if on:
            # Who wants to speak wants the other to stop.
            await self._interrupt(at, talking=True)
        else:
            await self._let_go()

    async def _listen(self, mode: str) -> None:
        await self._let_go()
        if self._microphone == "open" != mode:
            # Whatever voice is there would never come to an end.
            self._microphone = "off"
            await self._conversation.release()
        self._microphone = mode
        self._peer.voice.clear()

    async def _let_go(self) -> None:
        if self._talking:
            await asyncio.sleep(TAIL_S)
            self._talking = False
            await self._conversation.release()

    async def _hear(self) -> None:
        """The viewer's voice, as far as it is wanted."""
        while True:
            piece = await self._peer.next_voice()
            if self._microphone == "open" or self._talking:
                await self._conversation.hear(piece, SEND_RATE)

    async def _look(self) -> None:
        """Ends the session when it is time."""
        limits, peer = self.studio.run.limits, self._peer
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if self._conversation.state != "idle":
                self._active = now
            complete = peer.connected.is_set() and peer.there.is_set()
            if peer.gone.is_set():
                self.end("left" if complete else "unconnected")
            elif not complete and now - self.began > limits.connect_s:
                self.end("unconnected")
            elif now - self._active > limits.idle_s:
                self.end("idle")
            elif limits.longest_s and now - self.began > limits.longest_s:
                self.end("longest")

    async def _report(self) -> None:
        """Figures, once a second."""
        await self._peer.connected.wait()
        loop = asyncio.get_running_loop()
        frames, at = self._frames, loop.time()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            fps = (self._frames - frames) / (now - at)
            frames, at = self._frames, now
            lead, stages = round(1000 * self._player.lead), self._watch.milliseconds()
            self._send(protocol.Figures(round(fps, 1), lead, self._playout.repeated, stages))

    # Messages

    def _opened(self) -> None:
        finish, run = self.studio.performer.geometry, self.studio.run
        factor = max(1, -(-run.size // min(finish.height, finish.width)))
        size = (finish.width * factor, finish.height * factor)
        kind, state = run.talker.kind, self._conversation.state.value
        self._send(protocol.Hello(self.name, state, kind, *size, FPS, SYNTHETIC, run.limits.idle_s))

    def _received(self, data: str | bytes) -> None:
        now = time.monotonic()
        try:
            if not self._allow(now):
                raise Refused("too_fast", "too many messages in a short time")
            message = protocol.read(data, self.studio.run.limits.message_bytes)
            if isinstance(message, protocol.Ping):
                self._send(protocol.Pong(message.id))
                return
            self._active = now
            if isinstance(message, protocol.Bye):
                self.end("left")
            elif self._commands.full():
                raise Refused("busy", "what was asked before is still being done")
            else:
                self._commands.put_nowait((now, message))
        except Refused as refused:
            self._refuse(refused)

    def _allow(self, now: float) -> bool:
        rate = self.studio.run.limits.messages_per_s
        self._allowance = min(BURST_S * rate, self._allowance + rate * (now - self._allowance_at)) - 1
        self._allowance_at = now
        if self._allowance < 0:
            self._allowance += 1
            return False
        return True

    def _refuse(self, refused: Refused) -> None:
        self.studio.metrics.refused.labels(refused.code).inc()
        self._refused += 1
        if self._refused > MOST_REFUSED:
            self.end("misuse")
        self._send(protocol.Problem(refused.code, str(refused)))

    def _send(self, event: protocol.Event) -> None:
        if not self._silent and not self._peer.send(protocol.written(event)):
            self.end("stuck")


def _still(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """What is shown until the stream begins: the picture as the model gets it, uint8 [height, width, 3]."""
    return to_pixels(fit_image(picture, height, width)[None, :, None])[0]
