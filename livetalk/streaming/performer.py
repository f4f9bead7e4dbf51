"""What all sessions share: weights and settings, read only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from livetalk.conditions import Conditions
from livetalk.geometry import LATENT_CHANNELS, Geometry
from livetalk.media import fit_image, read_image
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.rollout import Noise, denoise_block, new_cache
from livetalk.streaming.pace import Clock, StreamConfig
from livetalk.streaming.prompts import Prompts
from livetalk.streaming.sound import Hearing, hearing_of

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from livetalk.streaming.engine.engine import Engine
    from livetalk.streaming.live import Live
    from livetalk.streaming.seat import Seat
    from livetalk.streaming.session import Hold, Session, Show

Picture = str | Path | Image.Image


class Performer:
    """A causal student with its encoders and a decoder; makes sessions, each with a state of its own.

    vae: WanVAE, which encodes the picture. decoder: what has decoder_state(latent) and decode_step(latents, state), the
    VAE by default. audio: AudioEncoder. text: TextEncoder. timesteps: what the student is told, largest first.
    positions: of the cache; only "relative" ones stay in the trained range for ever.
    """

    def __init__(
        self,
        dit: nn.Module,
        vae: nn.Module,
        audio: nn.Module,
        text: nn.Module,
        geometry: Geometry,
        timesteps: Sequence[float],
        positions: str = "relative",
        config: StreamConfig | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        self.dit, self.vae, self.audio, self.text = dit, vae, audio, text
        self.decoder = vae if decoder is None else decoder
        self.geometry = geometry
        self.timesteps = tuple(timesteps)
        self.config = config = config or StreamConfig()
        if positions != "relative":
            log.warning("positions=%s leave the range that was trained after a while: choose relative", positions)
        journal = config.journal(geometry.block_seconds)
        self.cache = CacheConfig(geometry.window, geometry.anchors, geometry.block, positions, journal)
        self.hearing: Hearing = hearing_of(audio, config.past_ms, config.ahead_ms)

    def session(
        self,
        image: Picture,
        prompt: str,
        seed: int = 0,
        clock: Clock | None = None,
        hold: Hold | None = None,
        show: Show | None = None,
    ) -> Session:
        """A stream of its own: see Session. Raises ValueError for pictures and prompts that cannot be."""
        from livetalk.streaming.session import Session

        return Session(self, image, prompt, seed, clock, hold, show)

    def live(
        self,
        image: Picture,
        prompt: str,
        seed: int = 0,
        clock: Clock | None = None,
        hold: Hold | None = None,
        show: Show | None = None,
    ) -> Live:
        """The same in threads of its own, to iterate over, also asynchronously: see Live."""
        from livetalk.streaming.live import Live

        return Live(self.session(image, prompt, seed, clock, hold, show))

    def seat(self, holder: object) -> Seat:
        """What one stream needs on the device, for as long as `holder` is there: plain, or the engine's, see
        EngineConfig. Raises ValueError for settings that do not fit."""
        from livetalk.streaming.engine.engine import is_fast
        from livetalk.streaming.seat import PlainSeat

        return self.engine.seat(holder) if is_fast(self.config.engine, self) else PlainSeat(self)

    @cached_property
    def engine(self) -> Engine:
        """Made when it is first needed; its first seat takes the time to compile and to capture."""
        from livetalk.streaming.engine.engine import Engine

        return Engine(self, self.config.engine)

    @cached_property
    def device(self) -> torch.device:
        return next(self.dit.parameters()).device

    @cached_property
    def dtype(self) -> torch.dtype:
        return next(self.dit.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of a block's latents."""
        geometry = self.geometry
        return (1, LATENT_CHANNELS, geometry.block, geometry.latent_height, geometry.latent_width)

    def new_cache(self) -> KVCache:
        """An empty cache that can be rewound as far as the settings need."""
        rows, columns = self.geometry.rows, self.geometry.columns
        return new_cache(self.dit, self.cache, rows=rows, columns=columns, dtype=self.dtype, device=self.device)

    def denoise(self, conditions: Conditions, cache: KVCache, noise: Noise) -> Tensor:
        """The next block's clean latents; the cache moves on."""
        return denoise_block(self.dit, conditions, self.geometry.block, self.timesteps, cache, noise)

    @torch.inference_mode()
    def encode_picture(self, image: Picture) -> Tensor:
        """The reference latent [1, 16, 1, h, w]. Raises ValueError for what is no picture."""
        picture = image if isinstance(image, Image.Image) else read_image(image)
        pixels = fit_image(picture, self.geometry.height, self.geometry.width)
        return self.vae.encode(pixels[None, :, None].to(self.device, self.dtype))

    @torch.inference_mode()
    def encode_prompt(self, prompt: str) -> Tensor:
        """Text features [1, L, text_dim]. Raises ValueError for an empty prompt."""
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError('prompt is empty: describe the movement, for example "nods while speaking, smiling"')
        return self.prompts.encode(" ".join(prompt.split()))

    @cached_property
    def prompts(self) -> Prompts:
        config = self.config
        return Prompts(self.text, self.device, self.dtype, config.text_visits, config.prompts or None)
