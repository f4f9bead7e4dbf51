"""Talkers by their settings."""

from __future__ import annotations

from livetalk.realtime.settings import TalkerConfig
from livetalk.realtime.talker import Talker


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

    def talker(self) -> Talker:
        """One for a new conversation."""
        raise NotImplementedError(self.config.kind)


def make_talker(config: TalkerConfig | None = None) -> Talker:
    """A talker with everything of its own; a server makes them with Talkers."""
    return Talkers(config or TalkerConfig()).talker()
