"""Talkers by their settings."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import Talker

if TYPE_CHECKING:
    from livetalk.realtime.thinker import Thinker
    from livetalk.realtime.voices import Voice


class Talkers:
    """Makes the talkers of one configuration, one for each conversation. What is large (a language model, a voice) is
    loaded when the first talker needs it, and shared by all: make one Talkers for a server, and call `warm` before it
    is ready. Compose TalkerConfig under a key `talker` of a run's config.

    Raises ValueError where a package or voice that the settings ask for is missing.
    """

    def __init__(self, config: TalkerConfig) -> None:
        self.config = config

    def warm(self) -> None:
        """Loads what is large, now; it may take seconds."""
        if self.config.kind == "offline":
            assert self.thinker and self.voice

    def talker(self) -> Talker:
        """One for a new conversation."""
        if self.config.kind == "echo":
            from livetalk.realtime.echo import EchoTalker

            return EchoTalker(self.config)
        if self.config.kind == "openai-realtime":
            from livetalk.realtime.openai import OpenAITalker

            return OpenAITalker(self.config)
        from livetalk.realtime.offline import OfflineTalker

        return OfflineTalker(self.config, self.thinker, self.voice)

    @cached_property
    def thinker(self) -> Thinker:
        if self.config.thinker == "smollm2":
            from livetalk.realtime.smollm import SmolLM2

            return SmolLM2.load(self.config.instructions, self.config.memory)
        from livetalk.realtime.rules import Rules

        return Rules(self.config.seed)

    @cached_property
    def voice(self) -> Voice:
        if self.config.speaker == "piper":
            from livetalk.realtime.piper import PiperVoice

            return PiperVoice(self.config.voice)
        from livetalk.realtime.voices import EspeakVoice

        return EspeakVoice(self.config.voice, self.config.pace)


def make_talker(config: TalkerConfig | None = None) -> Talker:
    """A talker with everything of its own; a server makes them with Talkers."""
    return Talkers(config or TalkerConfig()).talker()
