"""The control protocol: what page and server say to each other on the data channel `control`, as JSON texts.

A message is an object with a `type` and exactly the fields of its class here, of exactly their types. The reader
refuses everything else, with a code and a reason, and reads no more than it was told to. docs/server.md describes what
the messages mean.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from livetalk.realtime.talker import MOST_LETTERS

VERSION = 1
CHANNEL = "control"
MICROPHONES = ("off", "push", "open")
MOST_PROMPT = 500
MOST_NAME = 64


class Refused(ValueError):
    """What a viewer sent cannot be done. code: for programs; the message is for people. status: over HTTP."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


# From the page


@dataclass(frozen=True)
class Say:
    """A typed sentence."""

    type: ClassVar[str] = "say"
    text: str

    def __post_init__(self) -> None:
        _length("text", self.text, MOST_LETTERS)


@dataclass(frozen=True)
class Interrupt:
    """Stop speaking."""

    type: ClassVar[str] = "interrupt"


@dataclass(frozen=True)
class Microphone:
    """Who decides when the viewer is heard: nobody (off), the push-to-talk button, or voice detection (open)."""

    type: ClassVar[str] = "microphone"
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in MICROPHONES:
            raise Refused("bad_value", f"mode is not one of {', '.join(MICROPHONES)}")


@dataclass(frozen=True)
class Talk:
    """The push-to-talk button went down (on) or up."""

    type: ClassVar[str] = "talk"
    on: bool


@dataclass(frozen=True)
class Face:
    """Another picture, by its name; the avatar begins anew with it."""

    type: ClassVar[str] = "face"
    face: str

    def __post_init__(self) -> None:
        _length("face", self.face, MOST_NAME)


@dataclass(frozen=True)
class Prompt:
    """Another description of the movement."""

    type: ClassVar[str] = "prompt"
    text: str

    def __post_init__(self) -> None:
        _length("text", self.text, MOST_PROMPT)


@dataclass(frozen=True)
class Ping:
    """Asks for a pong with the same number, to measure the way there and back."""

    type: ClassVar[str] = "ping"
    id: int

    def __post_init__(self) -> None:
        if not 0 <= self.id < 2**53:
            raise Refused("bad_value", "id is not a number from 0 to 2^53")


@dataclass(frozen=True)
class Bye:
    """The viewer leaves."""

    type: ClassVar[str] = "bye"


Message = Say | Interrupt | Microphone | Talk | Face | Prompt | Ping | Bye
MESSAGES: dict[str, type] = {kind.type: kind for kind in Message.__args__}
_TYPES = {"str": str, "bool": bool, "int": int}


def read(data: str | bytes, most: int) -> Message:
    """The message in `data` of at most `most` bytes. Raises Refused for anything else."""
    if isinstance(data, bytes):
        raise Refused("not_text", "control messages are texts, not binary data")
    if len(data) > most or len(data.encode("utf-8", "surrogatepass")) > most:
        raise Refused("too_long", f"the message is over {most} bytes")
    try:
        found = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refused("not_json", "the message is not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise Refused("no_type", "the message is not an object with a type")
    kind = MESSAGES.get(found.pop("type"))
    if kind is None:
        raise Refused("unknown_type", f"the type is not one of {', '.join(MESSAGES)}")
    wanted = {entry.name: _TYPES[entry.type] for entry in fields(kind)}
    if found.keys() != wanted.keys():
        raise Refused("bad_fields", f"a message {kind.type} has the fields [{', '.join(wanted)}] and no others")
    for name, value in found.items():
        if type(value) is not wanted[name]:
            raise Refused("bad_value", f"{name} is not of type {wanted[name].__name__}")
    return kind(**found)


def _length(name: str, text: str, most: int) -> None:
    if not text.strip():
        raise Refused("bad_value", f"{name} is empty")
    if len(text) > most:
        raise Refused("bad_value", f"{name} has {len(text)} letters: at most {most}")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text) or "\0" in text:
        raise Refused("bad_value", f"{name} holds letters that are none")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


# To the page


@dataclass(frozen=True)
class Hello:
    """The first: what this session is. synthetic: always; notice says so in words. idle_s, most_letters: limits."""

    type: ClassVar[str] = "hello"
    session: str
    state: str
    talker: str
    width: int
    height: int
    fps: int
    notice: str
    idle_s: float
    most_letters: int = MOST_LETTERS
    protocol: int = VERSION
    synthetic: bool = True


@dataclass(frozen=True)
class StateIs:
    """idle, listening, thinking or speaking, as it is seen and heard."""

    type: ClassVar[str] = "state"
    state: str


@dataclass(frozen=True)
class CaptionIs:
    """who: "you", the whole sentence, or "avatar", the next piece, as it begins to be heard."""

    type: ClassVar[str] = "caption"
    who: str
    turn: int
    text: str


@dataclass(frozen=True)
class AnswerIs:
    """An answer began or ended to be heard; complete: to its end."""

    type: ClassVar[str] = "answer"
    turn: int
    began: bool
    complete: bool


@dataclass(frozen=True)
class HeardIs:
    """Of an interrupted answer: what was heard, which is all that the avatar remembers of it."""

    type: ClassVar[str] = "heard"
    turn: int
    heard_ms: int
    text: str


@dataclass(frozen=True)
class Done:
    """A message of type `what` was carried out; no frame and no sound from before an interruption comes after it."""

    type: ClassVar[str] = "done"
    what: str


@dataclass(frozen=True)
class Pong:
    """The answer to a ping."""

    type: ClassVar[str] = "pong"
    id: int


@dataclass(frozen=True)
class Figures:
    """Once a second. fps: frames sent; lead_ms: rendered and not yet shown; repeated: frames shown twice so far for
    want of a new one. stages: of the latest answer, milliseconds from the end of the typed sentence to its first sound
    pushed (speak), rendered (perform) and sent (send) with its frame, one after the other; empty before the first."""

    type: ClassVar[str] = "figures"
    fps: float
    lead_ms: int
    repeated: int
    stages: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A message was refused, or something went wrong; fatal: the session ends with it."""

    type: ClassVar[str] = "problem"
    code: str
    message: str
    fatal: bool = False


@dataclass(frozen=True)
class Ended:
    """The last: why the session is over."""

    type: ClassVar[str] = "ended"
    reason: str
    message: str


Event = Hello | StateIs | CaptionIs | AnswerIs | HeardIs | Done | Pong | Figures | Problem | Ended


def written(event: Event) -> str:
    """The text that is sent."""
    return json.dumps({"type": event.type, **asdict(event)}, ensure_ascii=False, separators=(",", ":"))
