"""What an answer says: a Thinker turns the conversation so far into text, piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Line:
    """What was said: by the user, or by the avatar (as far as it was heard)."""

    user: bool
    text: str


class Thinker(Protocol):
    """One serves many conversations at once: it keeps nothing of them."""

    def think(self, lines: Sequence[Line]) -> Generator[str, None, None]:
        """The answer to the last of `lines`, in pieces as they are thought: words, parts of words, sentences. Called in
        a thread, and closed early when the answer is not wanted any more; each piece should take well under a second.
        The same lines give the same answer."""
