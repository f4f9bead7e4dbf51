"""A stream without threads of its own: push sound, take the next block, interrupt. Deterministic.

What is rendered is a function of picture, prompt, seed and the sound on the timeline, and of nothing else. Whatever
changes the timeline where it was rendered already (speech over silence that was rendered ahead, an interruption) is
the same operation: take back the blocks that heard it, go on from the first frame that is not settled, and render them
again. The frames of a block that were shown already are not shown twice; their successors come from the new rendering,
which starts from the same noise and the same past.

Frame j of the stream is shown at j / FPS seconds, with the sound j * SAMPLES_PER_FRAME .. (j + 1) * SAMPLES_PER_FRAME.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from livetalk.geometry import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from livetalk.streaming.block import Block, Dropped, joined
from livetalk.streaming.pace import Clock, Pace, frame_after
from livetalk.streaming.performer import Performer, Picture
from livetalk.streaming.sound import NOTHING, Resampler, Track, heard_until, mono
from livetalk.streaming.take import Rendering, Take, Ticket

Hold = Callable[[int], int]
Show = Callable[[Block], None]


@dataclass
class _Sound:
    """Pushed sound that is not yet on the timeline, since when it waits, and whether it ends there for now."""

    pieces: list[np.ndarray]
    samples: int = 0
    since: float | None = None
    ended: bool = False

    def add(self, sound: np.ndarray) -> None:
        if len(sound):
            self.pieces.append(sound)
            self.samples += len(sound)

    def take(self) -> np.ndarray:
        taken = np.concatenate(self.pieces) if self.pieces else NOTHING
        self.pieces, self.samples, self.since = [], 0, None
        return taken


class Session:
    """One stream; see the module and Performer.session. Any thread may push, interrupt, change the prompt or restart
    while another renders. `listeners` are called with a frame, from which on everything handed out is stale, as soon
    as that is known and from whichever thread; they must not call the session.

    hold: called with a frame to be taken back, with all later ones; whoever shows frames lets go of them and returns
    the first that was not shown yet, the same or a later one. It closes the gap between the clock's word and the deed:
    without it, sound is lost if frames are shown that were just taken back. Player.drop is one; it must not call the
    session.

    show: takes a block whose frames are to be shown next, at once and before any others; Player.put is one. It lets
    pictures go on while an interruption is carried out; without it they stand still.

    Without a clock nothing but pushed sound is rendered, and what `next_block` returned counts as shown. With one,
    rendering keeps the lead of StreamConfig over it, and fills with silence before the player runs dry.
    """

    def __init__(
        self,
        performer: Performer,
        image: Picture,
        prompt: str,
        seed: int = 0,
        clock: Clock | None = None,
        hold: Hold | None = None,
        show: Show | None = None,
    ) -> None:
        self.performer = performer
        self.listeners: list[Callable[[int], None]] = []
        self.seed = _whole(seed)
        self._pace = Pace(performer.config, clock)
        self._player_drops = hold or (lambda frame: frame)
        self._show = show
        # Locks are taken in this order. `_state` is never held while a network runs.
        self._denoising, self._decoding, self._state = Lock(), Lock(), Lock()
        self._stops = 0
        # What was handed out lately, by its last frame; a drop may reach back further than what can be rendered again.
        self._handed: deque[tuple[int, Ticket]] = deque(maxlen=2 * performer.cache.journal)
        # Of that, what was not shown yet: what the player has too, or will have.
        self._unshown: list[Block] = []
        self._resampler = Resampler()
        text = performer.encode_prompt(prompt)
        self._take, reference = Take(performer), performer.encode_picture(image)
        self._take.restart(reference, self.seed, self._opening(reference))
        self._take.prompt(text)
        self._begin(0, text)

    def _begin(self, base: int, text: Tensor) -> None:
        """Frame `base` of the stream is frame 0 of the take; everything else here is local to the take."""
        self._base = base
        self._track, self._queue = Track(), _Sound([])
        self._prompts = [(0, text)]
        # Blocks begun, and the frame that is handed out next: what holds. The take may be ahead of it until it is
        # rewound to it, which only who holds both of its locks can do.
        self._begun = 0
        self._ready = 0
        self._making: int | None = None  # the block that is denoised right now: not in the history yet
        self._history: deque[Rendering] = deque(maxlen=self.performer.cache.journal)

    @property
    def live(self) -> bool:
        """Whether it keeps pace with a clock."""
        return self._pace.live

    # Sound

    def push_audio(self, pcm: np.ndarray, rate: int = SAMPLE_RATE) -> float:
        """Adds sound in pieces of any length: [n] or [n, channels], float in [-1, 1] or integers. Returns the backlog.

        Raises ValueError for values that are no sound, and, taking nothing, where the backlog would become too long.
        """
        pcm = mono(pcm, rate)
        with self._state:
            wanted = self._waiting() + len(pcm) * SAMPLE_RATE / rate
            if wanted > self.performer.config.backlog:
                raise ValueError(
                    f"backlog of {wanted / SAMPLE_RATE:.1f} s is over {self.performer.config.backlog_s:g} s: push less "
                    "at a time and wait until blocks were taken, or raise backlog_s"
                )
            if len(pcm):
                self._enqueue(self._resampler.push(pcm, rate))
                self._queue.ended = False
            return self._waiting() / SAMPLE_RATE

    def flush(self) -> None:
        """Says that no sound follows soon: what is there is rendered to its end, with silence after it."""
        with self._state:
            self._enqueue(self._resampler.flush())
            self._queue.ended = True

    @property
    def backlog(self) -> float:
        """Seconds of pushed sound that no block has been begun for."""
        with self._state:
            return self._waiting() / SAMPLE_RATE

    @property
    def unheard(self) -> float:
        """Seconds of pushed sound that were not shown yet: what `interrupt` would drop now."""
        with self._state:
            shown = frame_after(self._pace.played()) - self._base if self._pace.live else self._ready
            return self._after(max(0, min(shown, self._ready)))

    def _after(self, frame: int) -> float:
        """Seconds of pushed sound after `frame` of the take."""
        laid = self._track.laid(frame * SAMPLES_PER_FRAME, self._track.end)
        return (laid + self._queue.samples) / SAMPLE_RATE + self._resampler.held

    def _enqueue(self, sound: np.ndarray) -> None:
        self._queue.add(sound)
        if self._pace.live and self._queue.samples and self._queue.since is None:
            self._queue.since = self._pace.played()

    def _waiting(self) -> int:
        return self._queue.samples + max(0, self._track.end - self._front() * SAMPLES_PER_FRAME)

    def _front(self) -> int:
        """The first frame that no block was begun for."""
        return max(self._frames(self._begun).start, self._ready)

    # Blocks

    def next_block(self, fill: bool = False) -> Block | None:
        """The next block, or None while none is due: the lead is there, or sound is missing. fill: silence will do for
        sound that is missing. None also where another thread took the block back while it was made."""
        rendering = self.denoise_next(fill)
        return None if rendering is None else self.decode_all(rendering)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While it lasts, denoising does not decode, too, as some seats do: so that each can be timed."""
        with self._take.apart():
            yield

    def __iter__(self) -> Iterator[Block]:
        """Blocks until none is due."""
        while (block := self.next_block()) is not None:
            yield block

    def denoise_next(self, fill: bool = False) -> Rendering | None:
        """The first half of `next_block`; another thread may do the second beside the next first half."""
        with self._denoising:
            self._settle()
            with self._state:
                job = None if self._stops else self._job(fill)
            if job is None:
                return None
            rendering = self._take.denoise(*job)
            with self._state:
                self._history.append(rendering)
                self._making = None
                if self._stops:
                    rendering.ticket.expire(self._base + self._ready)
            return rendering

    def decode_all(self, rendering: Rendering) -> Block | None:
        """The second half, in the order of the first; None if the block was taken back meanwhile."""
        parts = []
        while not rendering.over and (part := self.decode_next(rendering)) is not None:
            parts.append(part)
        return joined(parts) if parts else None

    def decode_next(self, rendering: Rendering) -> Block | None:
        """The same once some of its frames are there; to be called until the rendering is `over` or taken back."""
        with self._decoding:
            while rendering.ticket.stale_from is None:
                frames = self._take.decode(rendering)
                with self._state:
                    # Some may have been shown already, of an earlier rendering.
                    if rendering.ticket.stale_from is None and rendering.made > self._ready:
                        return self._emit(rendering, frames)
            return None

    def _job(self, fill: bool) -> tuple[np.ndarray, Tensor] | None:
        """Sound and text of the next block, if it is due."""
        frames = self._frames(self._begun)
        start = (self._base + self._front()) / FPS
        speaking = frames.start * SAMPLES_PER_FRAME < self._track.end
        fill = fill or self._pace.starving(start) or (speaking and self._queue.ended)
        known = self._track.end >= heard_until(self.performer.hearing, frames)
        if not (fill or known) or not self._pace.due(start):
            return None
        self._making, self._begun = self._begun, self._begun + 1
        text = [text for first, text in self._prompts if first < self._begun][-1]
        return self._track.read(*self.performer.hearing.span(frames)), text

    def _emit(self, rendering: Rendering, frames: np.ndarray) -> Block:
        first, stop = self._ready, rendering.made
        assert stop - len(frames) <= first < stop
        span = (first * SAMPLES_PER_FRAME, stop * SAMPLES_PER_FRAME)
        silent = not self._track.laid(*span)
        kept = frames[first - stop :]
        block = Block(kept, self._track.read(*span), self._base + first, silent, rendering.ticket)
        self._ready = stop
        self._hand_out(block)
        self._forget()
        return block

    def _hand_out(self, block: Block) -> None:
        self._handed.append((block.stop, block.ticket))
        if self._show is not None:
            now = frame_after(self._pace.played())
            self._unshown = [one for one in self._unshown if one.stop > now] + [block]

    def _forget(self) -> None:
        """Lets go of what no block that can still be rendered hears or shows."""
        oldest = self._oldest()
        self._track.forget(self.performer.hearing.span(self._frames(oldest))[0])
        past = [entry for entry in self._prompts if entry[0] <= oldest]
        self._prompts = past[-1:] + [entry for entry in self._prompts if entry[0] > oldest]

    def _oldest(self) -> int:
        """The earliest block that can be rendered again."""
        if self._history:
            return self._history[0].index
        return self._begun if self._making is None else min(self._making, self._begun)

    def _frames(self, block: int) -> range:
        return self.performer.geometry.block_frames(block)

    # Speech over silence

    def _settle(self) -> None:
        """Lays waiting sound on the timeline if its time has come, and takes back what was rendered without it."""
        with self._state:
            cut = None if self._stops else self._lay()
        if cut is None:
            return
        self._notify(self._base + cut)
        with self._decoding:
            self._rewind()

    def _lay(self) -> int | None:
        """Lays it; returns the frame from which on that takes something back, if it does."""
        if not self._queue.samples:
            return None
        # The clock runs on meanwhile, so it is read once.
        settled = self._settled()
        at, block = self._entry(settled)
        if not self._is_time(at, block, speaking=self._track.end > settled * SAMPLES_PER_FRAME):
            return None
        cut = max(self._frames(block).start, settled)
        # After an interruption frames may be there of a block that is still to be rendered again.
        changes = block < self._begun or cut < self._ready
        if changes and (held := self._hold(cut)) > cut:
            cut = held
            at, block = self._entry(cut)
        self._track.place(at, self._queue.take())
        if changes:
            self._take_back(block, cut)
        return cut if changes else None

    def _entry(self, settled: int) -> tuple[int, int]:
        """Where sound is laid if frames before `settled` stay, and the first block that hears it."""
        at = max(self._track.end, settled * SAMPLES_PER_FRAME)
        block = self.performer.geometry.block_of(settled)
        while heard_until(self.performer.hearing, self._frames(block)) <= at:
            block += 1
        return at, block

    def _is_time(self, at: int, block: int, speaking: bool) -> bool:
        """Whether to lay the waiting sound at `at`, first heard by `block`.

        Where speech only goes on, at once. Where it begins after silence, or blocks have to be rendered again, when a
        whole block of it is there, so that this happens once and silence goes on meanwhile.
        """
        if not self._pace.live or self._queue.ended or (speaking and block >= self._begun):
            return True
        needed = heard_until(self.performer.hearing, self._frames(block)) - at
        prebuffer = self.performer.config.prebuffer_ms * SAMPLE_RATE // 1000
        wanted = needed if speaking else max(needed, prebuffer)
        waited = (self._pace.played() - self._queue.since) * SAMPLE_RATE
        return self._queue.samples >= wanted or waited >= wanted

    def _settled(self) -> int:
        """The first frame that may still change: shown ones may not, nor those shown before others can be made."""
        if not self._pace.live:
            return self._front()
        settled = min(self._ready, max(0, self._pace.settled() - self._base))
        return max(settled, self._frames(self._oldest()).start)

    def _hold(self, cut: int) -> int:
        """Keeps frames from `cut` on from being shown; returns the first of them that the player has not shown yet."""
        for stop, ticket in self._handed:
            if stop > self._base + cut:
                ticket.expire(self._base + cut)
        # Now none is put into the player any more, and what is in there goes.
        return self._player_drops(self._base + cut) - self._base

    def _shown_on(self, cut: int, seconds: float) -> Block | None:
        """Frames from `cut` on, which the player has just let go of, as a block without sound: as many as are shown in
        that time, and at most in the reserve, within which nothing new is laid. None where others are shown first, of
        which some may still be on their way to the player."""
        if self._show is None or self._base + cut > frame_after(self._pace.played()):
            return None
        count = frame_after(min(seconds, self.performer.config.reserve_ms / 1000))
        first, stop = self._base + cut, self._base + min(cut + count, self._ready)
        pieces = [one.frames[max(0, first - one.first) : max(0, stop - one.first)] for one in self._unshown]
        if first >= stop or sum(map(len, pieces)) != stop - first:
            return None
        frames = np.concatenate(pieces)
        return Block(frames, np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32), first, True, Ticket())

    def _take_back(self, block: int, cut: int) -> None:
        """Blocks from `block` on no longer hold; the next frame to be handed out is `cut`, or one before it."""
        for rendering in self._history:
            if rendering.index >= block:
                rendering.ticket.expire(self._base + cut)
        self._ready = min(self._ready, cut)
        self._begun = min(self._begun, block)
        kept = (one.until(self._base + cut) for one in self._unshown)
        self._unshown = [one for one in kept if one is not None]

    def _rewind(self) -> None:
        """Brings the take back to what holds. The caller has both of its locks."""
        with self._state:
            undone = [rendering for rendering in self._history if rendering.index >= self._begun]
            for _ in undone:
                self._history.pop()
        self._take.rewind(undone)

    def _notify(self, frame: int) -> None:
        for listener in self.listeners:
            listener(frame)

    # Interruption

    def interrupt(self, played_until: float | None = None, meanwhile: float = 0.0) -> Dropped:
        """Stops speaking: the stream goes on, silent, after the frames that begin before `played_until` seconds of it
        (by default the clock's position, or, without a clock, what was taken so far).

        Frames not shown, sound not heard and sound still waiting are dropped, and the model forgets them. Takes at most
        one block's time; frames are stale for `listeners` and Block.fresh at once, and none comes after it returns.
        Raises ValueError for a time before what can still be taken back.

        meanwhile: seconds it takes to make a block. For so long, and at most for the reserve, the pictures that are
        there are shown on, without sound: else the last one stands still until those that come instead are made.
        """
        with self._stopped(played_until, meanwhile) as dropped:
            return dropped

    @contextmanager
    def _stopped(self, played_until: float | None, meanwhile: float) -> Iterator[Dropped]:
        """Drops what was not shown and lets nothing begin until the end; inside, the take rests and is rewound."""
        with self._state:
            heard = self._hold(self._cut(played_until))
            stale = self._base + heard
            dropped = self._drop(heard, self._shown_on(heard, meanwhile))
            # Whoever renders meanwhile sees this and drops its block; locks alone could let it begin another.
            self._stops += 1
        try:
            self._notify(stale)
            with self._denoising, self._decoding:
                self._rewind()
                yield dropped
        finally:
            with self._state:
                self._stops -= 1

    def _drop(self, heard: int, shown_on: Block | None) -> Dropped:
        """All sound after frame `heard` of the take, and the frames after those that are shown on."""
        unheard = self._after(heard)
        self._track.cut(heard * SAMPLES_PER_FRAME)
        self._queue = _Sound([])
        self._resampler.reset()
        cut = heard if shown_on is None else shown_on.stop - self._base
        frames = self._ready - cut
        self._take_back(self.performer.geometry.block_of(cut), cut)
        if shown_on is not None:
            self._unshown.clear()
            self._hand_out(shown_on)
            self._show(shown_on)
        return Dropped(self._base + cut, frames, unheard)

    def _cut(self, played_until: float | None) -> int:
        earliest = self._frames(self._oldest()).start
        now = frame_after(self._pace.played()) - self._base if self._pace.live else self._ready
        if played_until is None:
            cut = now
        elif isfinite(played_until) and played_until >= 0:
            cut = frame_after(played_until) - self._base
        else:
            raise ValueError(f"played_until {played_until}: give seconds of the stream, 0 or more")
        if cut >= now:
            # Right after a restart the player may still be in the take before, which stays as it is.
            cut = max(earliest, cut)
        cut = min(self._ready, cut)
        if cut < earliest:
            raise ValueError(
                f"played_until {(self._base + cut) / FPS:g} s is too long ago: no more than "
                f"{(self._base + earliest) / FPS:g} s on can be taken back, raise lead_ms to keep more"
            )
        return cut

    # Changes in mid-stream

    def set_prompt(self, prompt: str) -> float:
        """Describes the movement anew, from the next block on. Returns when that is shown, in seconds of the stream.

        The cache keeps what was made under the old prompt: docs/realtime.md has the figures."""
        text = self.performer.encode_prompt(prompt)
        self._take.follow()
        with self._state:
            self._prompts = [entry for entry in self._prompts if entry[0] < self._begun] + [(self._begun, text)]
            return (self._base + self._frames(self._begun).start) / FPS

    def restart(
        self,
        image: Picture,
        prompt: str | None = None,
        seed: int | None = None,
        played_until: float | None = None,
        meanwhile: float = 0.0,
    ) -> Dropped:
        """Interrupts and begins anew with another picture: from there on the stream is that of a new session, the
        numbering of frames apart. prompt, seed: as they were unless given."""
        reference = self.performer.encode_picture(image)
        text = None if prompt is None else self.performer.encode_prompt(prompt)
        seed = self.seed if seed is None else _whole(seed)
        opening = self._opening(reference)
        with self._stopped(played_until, meanwhile) as dropped, self._state:
            self.seed = seed
            self._take.restart(reference, seed, opening)
            self._begin(self._base + self._ready, self._prompts[-1][1] if text is None else text)
            return dropped

    def _opening(self, reference: Tensor) -> Any:
        """What is made of a picture before its first frames, while those of the one before may still be made."""
        return self._take.opening(reference)


def _whole(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed!r} is not a whole number from 0 to {2**63 - 1}")
    return seed
