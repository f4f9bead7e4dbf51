"""A client of any server of the OpenAI Realtime protocol: sound and text in, sound out.

The server finds out when the user speaks, thinks, and speaks faster than it is heard; this side keeps what was not
heard yet, drops it on cancel, and tells the server how far the user heard. After a lost connection it tells the new
session what was said before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from livetalk.realtime import wire
from livetalk.realtime.answer import Answer, checked_ms
from livetalk.realtime.connection import Connection
from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import ANSWERS_KEPT, Failed, Heard, State, Talker, UserCaption, UserSpeech
from livetalk.realtime.thinker import Line
from livetalk.streaming.sound import Resampler, mono

log = logging.getLogger(__name__)

AHEAD_S = 120.0
"""Seconds of speech that wait here before the server has to; while it does, its signals wait, too."""
PACKET_S = 0.04
"""Seconds of the user's sound in one message."""
RELEASE_S = 0.8
"""Silence that tells a server's voice detection that the button was let go."""
PATIENCE_S = 1.0
"""How long the next response is held back for the end of a cancelled one, which servers may not tell."""
REMEMBERED = 200
FATAL = {"invalid_api_key", "insufficient_quota", "model_not_found"}
"""Codes of errors that trying again does not mend."""
BUSY = "conversation_already_has_active_response"


@dataclass
class Part:
    """Sound of a response: part `content` of an item of the server's conversation, of which `ms` came."""

    item: str | None
    content: int
    ms: float = 0.0


@dataclass(eq=False)
class Response:
    """An answer on its way from the server. typed: to text, which can be asked again after a lost connection. id: the
    server's name for it. done: the server sends no more of it."""

    answer: Answer
    typed: bool = False
    id: str | None = None
    parts: list[Part] = field(default_factory=list)
    pcm: wire.Pcm16 = field(default_factory=wire.Pcm16)
    done: bool = False

    def add(self, item: str | None, content: int, ms: float) -> None:
        if not self.parts or (self.parts[-1].item, self.parts[-1].content) != (item, content):
            self.parts.append(Part(item, content))
        self.parts[-1].ms += ms

    def truncations(self, heard_ms: float) -> list[wire.Message]:
        """What tells the server how much of each part was heard, where that is not all."""
        told = []
        for part in self.parts:
            if part.item is not None and heard_ms < part.ms:
                told.append(wire.truncate(part.item, part.content, max(0.0, heard_ms)))
            heard_ms -= part.ms
        return told


@dataclass(eq=False)
class Spoken:
    """What the user said; its text may come late."""

    item: str | None
    turn: int
    text: str = ""


class OpenAITalker(Talker):
    def __init__(self, config: TalkerConfig) -> None:
        super().__init__(AHEAD_S)
        self._config, self._server = config, config.server
        self._connection = Connection(config.server, self._greet, self._receive, self._lost)
        self._task: asyncio.Task | None = None
        self._past: deque[Line | Spoken | Answer] = deque(maxlen=REMEMBERED)
        self._responses: deque[Response] = deque(maxlen=2 * ANSWERS_KEPT)
        # One response at a time: to be asked for when the server is free, asked for, begun.
        self._wanted: Response | None = None
        self._asked: Response | None = None
        self._active: Response | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._dead = ""  # why there will be no connection any more
        self._stalled: asyncio.TimerHandle | None = None
        self._turn = 0
        self._listening = False
        self._resampler = Resampler(config.server.rate)
        self._packet = np.zeros(0, np.float32)
        self._sending = asyncio.Lock()

    async def __aenter__(self) -> OpenAITalker:
        self._task = asyncio.create_task(self._connection.run())
        self._task.add_done_callback(self._fell)
        return self

    async def __aexit__(self, *_) -> None:
        self._close()
        self._watch(None)
        self._wait(False)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def turn(self) -> int:
        return self._turn

    # Input

    async def say(self, text: str) -> int:
        text = self.check(text)
        await self.cancel()
        self._past.append(Line(True, text))
        response = self._open(typed=True)
        self._signals.put_now(UserCaption(response.answer.turn, text))
        if self._dead:
            self._end(response, complete=False)
            self._fail(self._dead, retryable=False)
            return response.answer.turn
        # Without a connection it is told and asked when there is one: see _greet.
        self._connection.post(wire.item(Line(True, text), self._server.dialect))
        self._want(response)
        return response.answer.turn

    async def hear(self, pcm: np.ndarray, rate: int) -> None:
        sound = mono(pcm, rate)
        async with self._sending:
            if self._server.turn_detection == "none" and len(sound) and not self._listening:
                self._hears(True)
            await self._send(self._resampler.push(sound, rate))

    async def release(self) -> None:
        async with self._sending:
            rest = self._resampler.flush()
            if self._server.turn_detection != "none":
                await self._send(np.concatenate([rest, np.zeros(round(RELEASE_S * self._server.rate), np.float32)]))
                return
            if not self._listening:
                return
            await self._send(rest, all_of_it=True)
            self._hears(False)
            await self.cancel()
            if self._connection.post({"type": "input_audio_buffer.commit"}):
                self._past.append(Spoken(None, self._turn + 1))
                self._want(self._open())

    async def cancel(self, heard_ms: float | None = None, turn: int | None = None) -> Heard | None:
        turn = self._turn if turn is None else turn
        checked_ms(heard_ms, 0.0)
        response = next((one for one in self._responses if one.answer.turn == turn), None)
        if response is None or response.answer.stopped:
            return None
        answer = response.answer
        answer.heard_ms = checked_ms(heard_ms, answer.stop())
        if turn == self._turn:
            self._watch(None)
            self._rest()
        if response is self._wanted:
            self._wanted = None
        elif response is not self._asked and not response.done:
            # One that is asked for, but not begun, is cancelled when it begins.
            self._connection.post(wire.cancel(response.id))
        self._connection.post(*response.truncations(answer.heard_ms))
        return Heard(turn, answer.heard_ms, answer.text)

    def lines(self) -> list[Line]:
        """The conversation so far, as far as it was heard."""
        lines = [Line(not isinstance(entry, Answer), entry.text) for entry in self._past]
        return [line for line in lines if line.text]

    # Turns

    def _open(self, typed: bool = False) -> Response:
        """A new turn."""
        self._turn += 1
        response = Response(Answer(self._turn, self._speech), typed)
        self._responses.append(response)
        self._past.append(response.answer)
        self._become(State.THINKING)
        self._watch(response)
        return response

    def _want(self, response: Response) -> None:
        self._wanted = response
        self._ask()

    def _ask(self) -> None:
        """For what is wanted, when the server is free: it makes one response at a time."""
        if self._wanted is None or not self._connection.connected:
            return
        if self._asked is not None or self._active is not None:
            self._wait(True)
            return
        self._wait(False)
        self._asked, self._wanted = self._wanted, None
        self._connection.post({"type": "response.create"})

    def _wait(self, on: bool) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._impatient) if on else None

    def _impatient(self) -> None:
        self._asked = self._active = None
        self._ask()

    def _end(self, response: Response, complete: bool) -> None:
        response.done = True
        response.answer.end(complete)
        if response is self._asked:
            self._asked = None
        if response is self._active:
            self._active = None
        if response.answer.turn == self._turn:
            self._watch(None)
            self._rest()
        self._ask()

    def _rest(self) -> None:
        self._become(State.LISTENING if self._listening else State.IDLE)

    def _watch(self, response: Response | None) -> None:
        """Gives up an answer of which nothing is heard for too long, from now on."""
        if self._stalled is not None:
            self._stalled.cancel()
        self._stalled = None
        if response is not None:
            loop = asyncio.get_running_loop()
            self._stalled = loop.call_later(self._server.answer_s, self._give_up, response)

    def _give_up(self, response: Response) -> None:
        self._fail(f"nothing came for {self._server.answer_s:g} s: this answer is given up, try again")
        response.answer.end(complete=False)
        if response is self._active:
            self._connection.post(wire.cancel(response.id))
        self._wanted = None if response is self._wanted else self._wanted
        self._watch(None)
        self._rest()

    def _fail(self, message: str, retryable: bool = True) -> None:
        self._signals.put_now(Failed(message, retryable))

    # The user's sound

    async def _send(self, sound: np.ndarray, all_of_it: bool = False) -> None:
        """In packets; what is said while there is no connection is lost. The caller has the lock."""
        sound = np.concatenate([self._packet, sound])
        step = round(PACKET_S * self._server.rate)
        whole = len(sound) if all_of_it else len(sound) // step * step
        self._packet = sound[whole:]
        for at in range(0, whole, step):
            await self._connection.stream(wire.append(sound[at : min(at + step, whole)]))

    def _hears(self, started: bool) -> None:
        self._listening = started
        self._signals.put_now(UserSpeech(started))
        if self._state in (State.IDLE, State.LISTENING):
            self._rest()

    # The connection

    def _greet(self) -> list[wire.Message]:
        """What a new session is told, and asked if an answer is waited for."""
        update = wire.session_update(self._server, self._config.voice, self._config.instructions)
        memory = [wire.item(line, self._server.dialect) for line in self.lines()[-self._config.memory - 1 :]]
        self._asked, self._wanted = self._wanted, None
        return [update, *memory, *([{"type": "response.create"}] if self._asked else [])]

    def _lost(self, reason: str, again: bool) -> None:
        asked, self._asked, self._active = self._asked, None, None
        if again and self._wanted is None and asked is not None and asked.typed and asked.answer.open():
            self._wanted = asked
        for response in list(self._responses):
            if not (response.done or (again and response is self._wanted)):
                self._end(response, complete=False)
        self._packet = self._packet[:0]
        if self._listening:
            self._hears(False)
        self._dead = "" if again else reason
        self._fail(f"{reason}{'; trying again' if again else ''}", again)

    def _fell(self, task: asyncio.Task) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("the connection's task failed", exc_info=task.exception())
            self._lost(f"the talker failed: {task.exception()}", False)

    # What the server says

    async def _receive(self, event: wire.Message) -> None:
        kind = event["type"]
        if kind in wire.AUDIO:
            await self._sound(event)
        elif kind in wire.TRANSCRIPT:
            response = self._response(event)
            await response.answer.caption(wire.text(event, "delta"), response.answer.made_ms)
        elif kind == "response.created":
            self._begun(wire.text(event, "response", "id"))
        elif kind == "response.done":
            self._finished(event)
        elif kind == "input_audio_buffer.speech_started":
            self._hears(True)
        elif kind == "input_audio_buffer.speech_stopped":
            self._hears(False)
        elif kind == "input_audio_buffer.committed":
            if self._server.turn_detection != "none":
                self._past.append(Spoken(wire.text_or_none(event, "item_id"), self._turn + 1))
        elif kind == "conversation.item.input_audio_transcription.completed":
            self._understood(event)
        elif kind == "error":
            self._complaint(event)
        else:
            log.debug("not used: %s", kind[:80])

    async def _sound(self, event: wire.Message) -> None:
        response = self._response(event)
        pcm = response.pcm.push(wire.text(event, "delta"))
        item, content = wire.text_or_none(event, "item_id"), wire.whole(event, "content_index")
        response.add(item, content, 1000 * len(pcm) / self._server.rate)
        if len(pcm) and response.answer.open():
            self._become(State.SPEAKING)
            # While it waits for room the server does not stall.
            self._watch(None)
            await response.answer.speak(pcm, self._server.rate)
            if response.answer.open() and response.answer.turn == self._turn:
                self._watch(response)

    def _response(self, event: wire.Message) -> Response:
        """Whose event it is; servers may leave out the id, or response.created."""
        name = wire.text_or_none(event, "response_id")
        known = [one for one in self._responses if one.id == name] if name else list(self._responses)[-1:]
        return known[-1] if known else self._begun(name)

    def _begun(self, name: str | None) -> Response:
        response, self._asked = self._asked or self._open(), None
        self._active, response.id = response, name
        if not response.answer.open():
            self._connection.post(wire.cancel(name))
        return response

    def _finished(self, event: wire.Message) -> None:
        name = wire.text_or_none(event, "response", "id")
        response = next((one for one in self._responses if name and one.id == name), None)
        if response is None or response.done:
            return
        status = wire.text_or_none(event, "response", "status") or "completed"
        if status in ("failed", "incomplete") and not response.answer.stopped:
            reason = wire.text_or_none(event, "response", "status_details", "error", "message") or status
            self._fail(f"the server did not finish its answer: {_line(reason)}")
        self._end(response, complete=status == "completed")

    def _understood(self, event: wire.Message) -> None:
        name, text = wire.text_or_none(event, "item_id"), " ".join(wire.text(event, "transcript").split())
        heard = [entry for entry in self._past if isinstance(entry, Spoken) and entry.item in (name, None)]
        if text and heard:
            heard[-1].text = text
            self._signals.put_now(UserCaption(heard[-1].turn, text))

    def _complaint(self, event: wire.Message) -> None:
        message = _line(wire.text_or_none(event, "error", "message") or "an error without a message")
        if (wire.text_or_none(event, "error", "event_id") or "").startswith(wire.HARMLESS):
            log.debug("too late: %s", message)
            return
        code = wire.text_or_none(event, "error", "code")
        if code == BUSY and self._asked is not None:
            # The server began to answer the user's voice meanwhile.
            self._wanted, self._asked = self._wanted or self._asked, None
            return
        if self._asked is not None:
            self._end(self._asked, complete=False)
        self._fail(f"the server says: {message}", code not in FATAL)


def _line(message: str) -> str:
    return " ".join(message.split())[:300]
