"""The fast seats of a performer: made once, captured once, and handed from stream to stream."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from contextlib import nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from livetalk.conditions import Conditions
from livetalk.media import pixels_of
from livetalk.models.vae import DecoderState, WanVAE
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.decoder import DecodedStream, FusedDecoder
from livetalk.streaming.engine.denoiser import DenoisedStream, Denoiser
from livetalk.streaming.engine.hearing import HeardStream
from livetalk.streaming.seat import Fetch, fetching, following, lanes

if TYPE_CHECKING:
    from livetalk.streaming.performer import Performer

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def is_fast(config: EngineConfig, performer: Performer) -> bool:
    """Whether streams of a performer take fast seats. Raises ValueError where that is wanted and cannot be."""
    fits = performer.cache.positions == "relative"
    if config.path == "fast" and not fits:
        raise ValueError(f"engine.path=fast needs positions=relative, not {performer.cache.positions}")
    return config.path == "fast" or (config.path == "auto" and fits)


class Engine:
    """What the seats of one performer share. It does not hold the performer."""

    def __init__(self, performer: Performer, config: EngineConfig) -> None:
        began = time.perf_counter()
        self.config, self.device, geometry = config, performer.device, performer.geometry
        gpu = self.device.type == "cuda"
        self._latents = (geometry.block, geometry.latent_height, geometry.latent_width)
        self.denoiser = Denoiser(
            performer.dit, performer.cache, geometry.rows, geometry.columns, performer.timesteps, config
        )
        self._plain_decoder = performer.decoder
        self.decoder = self._decoder(performer.decoder)
        elsewhere = self.decoder is not None and self.decoder.device != self.device
        self.joint = not (elsewhere or config.on(config.overlap, not gpu))
        self._free: list[FastSeat] = []
        self._heard = (performer.hearing, geometry, performer.dtype, self.device, self.denoiser.graphs)
        self._lock = Lock()
        log.debug("engine ready to be seated after %.1f s", time.perf_counter() - began)

    def _decoder(self, decoder: nn.Module) -> FusedDecoder | None:
        """None for the decoder's own calls. Raises ValueError where the fused one is wanted and cannot be."""
        config, gpu = self.config, self.device.type == "cuda"
        wanted = config.decoder == "fused" or bool(config.decode_device)
        if not (wanted or (config.decoder == "auto" and gpu)):
            return None
        if not isinstance(decoder, WanVAE):
            if wanted:
                raise ValueError(
                    "engine.decoder=fused and decode_device are for the VAE's own decoder: use decoder=vae"
                )
            return None
        if config.decode_device:
            decoder = copy.deepcopy(decoder).to(config.decode_device)
        dtype = None if config.decoder_precision == "model" else DTYPES[config.decoder_precision]
        return FusedDecoder(decoder, dtype, config.on(config.compile, gpu))

    def seat(self, holder: object) -> FastSeat:
        """A free seat, or a new one; it is free again when `holder` is gone."""
        with self._lock:
            seat = self._free.pop() if self._free else None
        if seat is None:
            seat = self._new()
        weakref.finalize(holder, self._free.append, seat)
        return seat

    def _new(self) -> FastSeat:
        began = time.perf_counter()
        with torch.inference_mode():
            seat = FastSeat(self)
        planned = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.plan().items())
        log.info("a seat was made in %.1f s: %s; GB planned: %s", time.perf_counter() - began, self.told(), planned)
        return seat

    def plan(self) -> dict[str, int]:
        """Bytes that will be held, by what for: shared parts, then those of a seat; on the device, unless the name says
        otherwise."""
        one, weights = self.denoiser, list(self.denoiser.dit.parameters())
        parts = {"transformer": sum(value.nbytes for value in weights), **one.plan()}
        if self.decoder is not None:
            parts |= self.decoder.plan(*self._latents, one.cache.journal, one.host)
        return parts

    def told(self) -> str:
        """In words, for logs and reports."""
        one = self.denoiser
        decoder = "plain" if self.decoder is None else str(self.decoder.dtype).removeprefix("torch.") + " fused"
        return (
            f"{str(one.dtype).removeprefix('torch.')}, {one.linears} linears, attention {one.attention}, "
            f"decoding {'in the same lane' if self.joint else 'in a lane of its own'}, "
            f"undo on the {'host' if one.host else 'device'}, "
            f"graphs {'on' if one.graphs else 'off'}, compiled {'yes' if one.compiled else 'no'}, decoder {decoder}"
        )


class FastSeat:
    """See streaming.seat.Seat."""

    def __init__(self, engine: Engine) -> None:
        self.joint = engine.joint
        denoising, decoding = lanes(engine.device)
        if self.joint:
            decoding = denoising
        elif engine.decoder is not None and engine.decoder.device != engine.device:
            decoding = lanes(engine.decoder.device)[1]
        self.lanes = (denoising, decoding)
        with nullcontext() if denoising is None else torch.cuda.stream(denoising):
            self._heard = HeardStream(*engine._heard)
            self._denoised = DenoisedStream(engine.denoiser)
        self._decoded: DecodedStream | None = None
        self._plain, self._state = engine._plain_decoder, engine._plain_decoder.decoder_state()
        if engine.decoder is not None:
            with nullcontext() if decoding is None else torch.cuda.stream(decoding):
                one = engine.denoiser
                self._decoded = DecodedStream(engine.decoder, *engine._latents, one.graphs, one.cache.journal, one.host)

    def opening(self, reference: Tensor) -> DecoderState | None:
        if self._decoded is not None:
            return None
        with following(self.lanes[1], reference.device):
            return self._plain.decoder_state(reference)

    def reset(self, opening: DecoderState | None) -> None:
        self._denoised.reset()
        if self._decoded is None:
            self._state = opening
            return
        # The lane's own work: what was queued there before still reads what is cleared here.
        decoding = self.lanes[1]
        with nullcontext() if decoding is None else torch.cuda.stream(decoding):
            self._decoded.reset()

    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        return self._denoised.denoise(conditions, noise)

    def keep(self, latents: Tensor) -> None:
        self._denoised.keep(latents)

    def features(self, sound: Tensor, frames: range) -> Tensor:
        return self._heard.features(sound, frames)

    def prompt(self, text: Tensor) -> None:
        self._denoised.prompt(text)

    def decode(self, latents: Tensor) -> list[Fetch]:
        if self._decoded is not None:
            fetches = [fetching(frames) for frames in self._decoded.decode(latents)]
            # The frames leave first.
            self._decoded.keep()
            return fetches
        return [fetching(pixels_of(self._plain.decode_step(latents, self._state))[0])]

    def rewind(self, blocks: int) -> None:
        self._denoised.rewind(blocks)

    def snapshot(self) -> Any:
        return self._state.snapshot() if self._decoded is None else self._decoded.snapshot()

    def restore(self, snapshot: Any) -> None:
        if self._decoded is None:
            self._state.restore(snapshot)
            return
        decoding = self.lanes[1]
        with nullcontext() if decoding is None else torch.cuda.stream(decoding):
            self._decoded.restore(snapshot)
