"""Text that is still being thought, cut into sentences that can be spoken already."""

from __future__ import annotations

import re

LONGEST = 240
"""Letters of a sentence; a longer one is cut between words, so that its sound comes in time and can be stopped."""
FIRST_WORDS = 4
"""Words from which on the first sentence may end at a comma: the sooner it is spoken, the sooner the answer begins."""

# The end of a sentence is only known when what follows is: "3.5", "e.g. this" and "Wait..." go on.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s|\n")
_CLAUSE = re.compile(r"[,;:–—]\s")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|a\.m|p\.m|[a-z])\.\s$", re.IGNORECASE)


class Sentences:
    """Takes text in pieces of any length and gives it back in sentences: however it is cut into pieces, the sentences
    are the same, and joined by spaces they are the text with its white space made single."""

    def __init__(self) -> None:
        self._text = ""
        self._first = True

    def push(self, piece: str) -> list[str]:
        """The sentences that are now whole."""
        self._text += piece
        sentences = []
        while (end := self._end()) is not None:
            sentences += self._take(end)
        return sentences

    def flush(self) -> list[str]:
        """What is left; the next text begins anew."""
        rest = self._take(len(self._text))
        self._first = True
        return rest

    def _take(self, end: int) -> list[str]:
        sentence, self._text = " ".join(self._text[:end].split()), self._text[end:]
        self._first = self._first and not sentence
        return [sentence] if sentence else []

    def _end(self) -> int | None:
        """One past the first sentence, if it is known."""
        ends = [match.end() for match in _END.finditer(self._text) if not self._goes_on(match.end())]
        if self._first:
            clauses = (match.end() for match in _CLAUSE.finditer(self._text))
            ends += [end for end in clauses if len(self._text[:end].split()) >= FIRST_WORDS]
        end = min(ends, default=None)
        if end is not None and end <= LONGEST:
            return end
        if len(self._text) <= LONGEST:
            return None
        space = self._text.rfind(" ", 0, LONGEST)
        return space + 1 if space > 0 else LONGEST

    def _goes_on(self, end: int) -> bool:
        return _ABBREVIATION.search(self._text[:end]) is not None
