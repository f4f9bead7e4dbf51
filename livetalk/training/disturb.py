"""Sound as other voices, rooms, lines and microphones would have it, at the same times.

What an audio encoder is trained on comes from few synthesisers. These change everything about sound but what is said
and when: formants, tilt, whispering; the response of microphone and line; reverberation; noise and other people;
loudness. All are functions of sound [B, S] at 16 kHz and a generator, on the sound's device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log2, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk.geometry import SAMPLE_RATE

SIZE, HOP = 512, 128
SMOOTH = 40
"""Cepstral coefficients of a spectrum's envelope: harmonics of voices up to 400 Hz lie above them."""
TAIL = 8192
"""Samples after which a room has died away."""
LEAST = 1e-6


@dataclass(frozen=True)
class Disturbances:
    """voice, line, noise: shares of sounds that get another voice, another line and room, and noise; plain: share that
    keeps its sound, but for its loudness. formants: they move by factors up to e to its power; whispered: share of the
    other voices. equaliser: deviation in dB of a line's response, at most; narrow: share of lines that end between
    2.8 and 8 kHz; rooms: share of lines with a room, which reverberates for up to `reverberation` seconds, from 0 to
    20 dB under the direct sound. loudest_noise: in dB under the sound, drawn up to 50; babble: share of the noises
    that are other clips. quietest, loudest: change of the level in dB; what passes 1 is clipped."""

    voice: float = 0.7
    line: float = 0.7
    noise: float = 0.6
    plain: float = 0.12
    formants: float = 0.22
    whispered: float = 0.08
    equaliser: float = 6.0
    narrow: float = 0.35
    rooms: float = 0.5
    reverberation: float = 0.6
    loudest_noise: float = 3.0
    babble: float = 0.2
    quietest: float = -30.0
    loudest: float = 8.0

    def __post_init__(self) -> None:
        for name in ("voice", "line", "noise", "plain", "whispered", "narrow", "rooms", "babble"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"disturbances.{name}={getattr(self, name)} is no share: give a number from 0 to 1")
        if not 0.1 <= self.reverberation <= 0.6:
            raise ValueError(f"disturbances.reverberation={self.reverberation}: give 0.1 to 0.6 seconds")
        if not self.quietest <= self.loudest:
            raise ValueError(f"disturbances: quietest={self.quietest} is louder than loudest={self.loudest}")


def disturbed(sound: Tensor, config: Disturbances, generator: torch.Generator) -> Tensor:
    """[B, S] -> [B, S] within -1 .. 1, each disturbed in its own way."""
    draw = Draws(len(sound), generator, sound.device)
    changed = draw.some(config.voice, other_voice(sound, config, draw), sound)
    changed = draw.some(config.line, other_line(changed, config, draw), changed)
    changed = changed * (level(sound) / level(changed).clamp_min(LEAST))
    changed = draw.some(config.noise, noisy(changed, config, draw), changed)
    changed = draw.some(config.plain, sound, changed)
    return (changed * decibels(draw.between(config.quietest, config.loudest))).clamp(-1, 1)


class Draws:
    """Random numbers for `count` sounds: [count, 1] each."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.count, self.generator, self.device = count, generator, device

    def between(self, low: float, high: float, columns: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(self.count, columns, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator, device=self.device)

    def happens(self, share: float) -> Tensor:
        return self.between(0, 1) < share

    def some(self, share: float, one: Tensor, other: Tensor) -> Tensor:
        """A share of the sounds as in `one`, the rest as in `other`."""
        return torch.where(self.happens(share), one, other)


def level(sound: Tensor) -> Tensor:
    """[B, S] -> [B, 1], root mean square."""
    return sound.square().mean(1, keepdim=True).sqrt()


def decibels(gain: Tensor) -> Tensor:
    return 10 ** (gain / 20)


def other_voice(sound: Tensor, config: Disturbances, draw: Draws) -> Tensor:
    """Formants moved, harmonics stronger or weaker against what is between them, whispered at times.

    The spectrum's envelope, smoothed through the cepstrum, is stretched along frequency; what is left of the
    spectrum, the source, keeps its pitch.
    """
    window = torch.hann_window(SIZE, device=sound.device)
    spectrum = torch.stft(sound, SIZE, HOP, window=window, return_complex=True)  # [B, bins, windows]
    strength = spectrum.abs().clamp_min(LEAST)
    shape, source = _envelope(strength.log())
    moved = stretched(shape, torch.exp(draw.between(-config.formants, config.formants)))
    source = source * torch.where(draw.happens(0.5), 1.0, draw.between(0.6, 1.3))[..., None]
    phase = spectrum / strength
    whispered = draw.happens(config.whispered)[..., None]
    turned = 2 * pi * torch.rand(strength.shape, generator=draw.generator, device=sound.device)
    phase = torch.where(whispered, torch.polar(torch.ones_like(turned), turned), phase)
    source = torch.where(whispered, 0.4 * draw.normal(*strength.shape[1:]), source)
    return _overlapped(torch.fft.irfft((moved + source).exp() * phase, dim=1), window, sound.shape[1])


def _overlapped(pieces: Tensor, window: Tensor, length: int) -> Tensor:
    """[B, SIZE, windows] -> [B, length]: what torch.istft does, which asks the host whether it can, so that it cannot
    be captured in a CUDA graph."""

    def added(columns: Tensor) -> Tensor:
        size = (1, SIZE + HOP * (columns.shape[-1] - 1))
        return F.fold(columns, size, (1, SIZE), stride=(1, HOP))[:, 0, 0]

    weights = window.square()[None, :, None].expand(1, -1, pieces.shape[-1])
    sound = added(pieces * window[:, None]) / added(weights).clamp_min(LEAST)
    return sound[:, SIZE // 2 :][:, :length]


def _envelope(logarithm: Tensor) -> tuple[Tensor, Tensor]:
    """The smooth part of log spectra [B, bins, windows], and the rest."""
    cepstrum = torch.fft.irfft(logarithm, dim=1)
    cepstrum[:, SMOOTH : SIZE - SMOOTH + 1] = 0
    smooth = torch.fft.rfft(cepstrum, dim=1).real
    return smooth, logarithm - smooth


def stretched(shape: Tensor, factor: Tensor) -> Tensor:
    """Envelopes [B, bins, windows] with what was at bin k at bin k * factor [B, 1]; the last bin goes on for ever."""
    last = shape.shape[1] - 1
    place = (torch.arange(last + 1, device=shape.device) / factor).clamp_max(last)
    below = place.long().clamp_max(last - 1)

    def taken(bins: Tensor) -> Tensor:
        return shape.gather(1, bins[..., None].expand(-1, -1, shape.shape[2]))

    return torch.lerp(taken(below), taken(below + 1), (place - below)[..., None])


def other_line(sound: Tensor, config: Disturbances, draw: Draws) -> Tensor:
    """Another microphone, line and room: a smooth random response, band limits, reverberation."""
    length = sound.shape[1] + TAIL
    spectrum = torch.fft.rfft(sound, length)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=sound.device)
    response = _equaliser(hertz, config, draw) * _limits(hertz, config, draw)
    room = torch.fft.rfft(_room(config, draw), length)
    spectrum = spectrum * response * torch.where(draw.happens(config.rooms), room, torch.ones_like(room))
    return torch.fft.irfft(spectrum, length)[:, : sound.shape[1]]


def _equaliser(hertz: Tensor, config: Disturbances, draw: Draws, points: int = 8) -> Tensor:
    """[B, bins]: gains drawn at points over the logarithm of frequency, from 60 Hz on, and lines between them."""
    gains = draw.normal(points) * draw.between(0, config.equaliser)
    place = torch.log2(hertz.clamp_min(60) / 60) / log2(SAMPLE_RATE / 2 / 60) * (points - 1)
    below = place.long().clamp(0, points - 2)
    return decibels(torch.lerp(gains[:, below], gains[:, below + 1], place - below))


def _limits(hertz: Tensor, config: Disturbances, draw: Draws) -> Tensor:
    """[B, bins]: softly nothing under a low and over a high frequency."""
    low = 400 * draw.between(0, 1) ** 2
    high = torch.where(draw.happens(config.narrow), draw.between(2800, 8000), 9000.0)
    return torch.sigmoid((hertz - low) / 40) * torch.sigmoid((high - hertz) / 120)


def _room(config: Disturbances, draw: Draws) -> Tensor:
    """[B, TAIL]: the direct sound, then noise from 2 ms on that decays by 60 dB in the time of reverberation."""
    seconds = torch.arange(TAIL, device=draw.device) / SAMPLE_RATE
    echo = draw.normal(TAIL) * torch.exp(-log(1000) * seconds / draw.between(0.1, config.reverberation))
    echo = echo / echo.square().sum(1, keepdim=True).sqrt() * decibels(-draw.between(0, 20))
    return torch.where(seconds < 0.002, (seconds == 0).float(), echo)


def noisy(sound: Tensor, config: Disturbances, draw: Draws) -> Tensor:
    """With noise from white to red, or with three of the other sounds at once."""
    spectrum = torch.fft.rfft(draw.normal(sound.shape[1]))
    hertz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=sound.device)
    noise = torch.fft.irfft(spectrum * hertz.clamp_min(50) ** -draw.between(0, 1.2), sound.shape[1])
    others = sum(sound.roll(places, 0) for places in (1, 2, 3))
    noise = draw.some(config.babble, others, noise)
    noise = noise / level(noise).clamp_min(LEAST)
    # Silence gets the noise of a quiet room.
    return sound + noise * level(sound).clamp_min(3e-3) * decibels(-draw.between(config.loudest_noise, 50))
