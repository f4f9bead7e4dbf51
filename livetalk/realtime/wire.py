"""Messages of the OpenAI Realtime protocol: what is sent, and what of the received is understood. No connection here.

Field names as documented for sessions of type "realtime" (dialect "ga") and the beta before it. Servers answer with
either generation of event names, so both are read.
"""

from __future__ import annotations

import base64
import binascii
import json
from math import floor
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from livetalk.realtime.settings import RealtimeServer
from livetalk.realtime.thinker import Line

Message = dict[str, Any]

AUDIO = {"response.audio.delta", "response.output_audio.delta"}
TRANSCRIPT = {
    "response.audio_transcript.delta",
    "response.output_audio_transcript.delta",
    "response.text.delta",
    "response.output_text.delta",
}
HARMLESS = "harmless-"
"""Begins the event_id of what may come too late: the server's complaint about it is no failure."""


class Garbage(Exception):
    """A message that is not of the protocol."""


# What is sent


def address(server: RealtimeServer) -> str:
    """The url with the model in its query, where OpenAI wants it."""
    parts = urlsplit(server.url)
    query = dict(parse_qsl(parts.query))
    if server.model:
        query.setdefault("model", server.model)
    return urlunsplit(parts._replace(query=urlencode(query)))


def session_update(server: RealtimeServer, voice: str, instructions: str) -> Message:
    detection = None if server.turn_detection == "none" else {"type": server.turn_detection}
    transcription = {"model": server.transcribe} if server.transcribe else None
    if server.dialect == "beta":
        session: Message = {"modalities": ["text", "audio"], "turn_detection": detection}
        session |= {"input_audio_format": "pcm16", "output_audio_format": "pcm16"}
        if transcription:
            session["input_audio_transcription"] = transcription
        if voice:
            session["voice"] = voice
    else:
        pcm = {"type": "audio/pcm", "rate": server.rate}
        listening: Message = {"format": pcm, "turn_detection": detection}
        speaking: Message = {"format": pcm}
        if transcription:
            listening["transcription"] = transcription
        if voice:
            speaking["voice"] = voice
        session = {"type": "realtime", "output_modalities": ["audio"]}
        session["audio"] = {"input": listening, "output": speaking}
        if server.model:
            session["model"] = server.model
    if instructions:
        session["instructions"] = instructions
    return {"type": "session.update", "session": session}


def item(line: Line, dialect: str) -> Message:
    """A sentence of the conversation, the user's or the avatar's."""
    kind = "input_text" if line.user else "text" if dialect == "beta" else "output_text"
    content = [{"type": kind, "text": line.text}]
    role = "user" if line.user else "assistant"
    return {"type": "conversation.item.create", "item": {"type": "message", "role": role, "content": content}}


def append(pcm: np.ndarray) -> Message:
    """Sound float32 [n] in [-1, 1]."""
    data = (np.clip(pcm, -1, 1) * 32767).round().astype("<i2").tobytes()
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}


def cancel(response: str | None) -> Message:
    message = {"type": "response.cancel", "event_id": HARMLESS + "cancel"}
    return message | ({"response_id": response} if response else {})


def truncate(item: str, content: int, heard_ms: float) -> Message:
    """heard_ms must not be more than the sound of that part."""
    message = {"type": "conversation.item.truncate", "event_id": HARMLESS + "truncate", "item_id": item}
    return message | {"content_index": content, "audio_end_ms": floor(heard_ms)}


# What is received


def parse(message: str | bytes) -> Message:
    """Raises Garbage for what is no JSON object with a type."""
    if isinstance(message, bytes):
        raise Garbage("a binary message")
    try:
        event = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise Garbage("a message that is no JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise Garbage("a message without a type")
    return event


def text(event: Message, *path: str) -> str:
    """The text at `path`. Raises Garbage where there is none."""
    value: Any = event
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise Garbage(f"{event['type']} without {'.'.join(path)}")
    return value


def text_or_none(event: Message, *path: str) -> str | None:
    try:
        return text(event, *path)
    except Garbage:
        return None


def whole(event: Message, key: str) -> int:
    """A number of 0 or more; 0 where it is left out."""
    value = event.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Garbage(f"{event['type']} with {key}={value!r}"[:100])
    return value


class Pcm16:
    """Base64 of little-endian 16-bit samples in pieces, which need not end with a sample -> float32 in [-1, 1]."""

    def __init__(self) -> None:
        self._odd = b""

    def push(self, encoded: str) -> np.ndarray:
        """Raises Garbage for what is no base64."""
        try:
            data = self._odd + base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Garbage("sound that is no base64") from error
        even = len(data) // 2 * 2
        self._odd = data[even:]
        return np.frombuffer(data[:even], "<i2").astype(np.float32) / 32768
