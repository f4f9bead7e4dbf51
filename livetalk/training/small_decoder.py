"""Training the small decoder: from the latents of the frozen VAE's encoder to the true frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livetalk.checks import at_least
from livetalk.geometry import SPACE_STRIDE, TIME_STRIDE
from livetalk.media import to_unit
from livetalk.models.small_decoder import SmallDecoder
from livetalk.models.vae import WanVAE
from livetalk.training.autoencoder import (
    edge_error,
    motion_error,
    moving_corners,
    moving_places,
    psnr,
    reconstruction_error,
)
from livetalk.training.losses import Places


@dataclass(frozen=True)
class SmallDecoderTraining:
    """latents: of a window that is scored; history: latents before it that the network sees, as in the middle of a
    stream. Every `start_every`-th step shows windows from the start of clips instead. crop: side of the squares shown,
    in pixels, drawn from where pictures move (0: whole pictures). Of `whole_every` steps the last shows whole pictures,
    as many pixels of them: from squares alone, backgrounds lose their colours. edges, motion, moving: as in
    AutoencoderConfig. places: where errors count more."""

    latents: int = 4
    history: int = 4
    start_every: int = 4
    crop: int = 0
    whole_every: int = 3
    edges: float = 1.0
    motion: float = 3.0
    moving: float = 2.0
    places: Places = Places()

    def __post_init__(self) -> None:
        at_least(1, self, "latents", "history", "start_every", "whole_every")
        at_least(0, self, "crop", "edges", "motion", "moving")


class SmallDecoderObjective:
    """latents [N, 16, F, h, w] and their clips uint8 [N, T, H, W, 3], both on the training device."""

    def __init__(self, decoder: SmallDecoder, latents: Tensor, clips: Tensor, config: SmallDecoderTraining) -> None:
        shown, there = config.history + config.latents, latents.shape[2]
        if shown >= there:
            raise ValueError(
                f"small_decoder_training.history={config.history} and latents={config.latents}: both fit into clips of "
                f"{there} latents with one to spare"
            )
        side = SPACE_STRIDE * min(latents.shape[3:])
        if config.crop % SPACE_STRIDE or not 0 <= config.crop <= side:
            raise ValueError(
                f"small_decoder_training.crop={config.crop}: choose a multiple of {SPACE_STRIDE} up to {side}, or 0"
            )
        self.decoder, self.latents, self.clips, self.config = decoder, latents, clips, config
        self.places = moving_places(clips) if config.crop else None
        self.weight = config.places.weight(*clips.shape[2:4], clips.device)

    def modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.decoder}

    def kind(self, step: int) -> tuple[bool, bool]:
        """Whether a step shows starts of clips, and whether whole pictures."""
        config = self.config
        return step % config.start_every == 0, not config.crop or (step + 1) % config.whole_every == 0

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config, (begins, whole) = self.config, self.kind(step)
        latents, video, weight = self.sample(begins, whole, batch, generator)
        decoded = self.decoder.decode_last(latents, config.latents).float()
        error = reconstruction_error(video, decoded, config.moving, begins, weight)
        edges, motion = edge_error(video, decoded, weight), motion_error(video, decoded, weight)
        squared = (decoded.clamp(-1, 1) - video).square().mean()
        return error + config.edges * edges + config.motion * motion, {"psnr": psnr(squared.detach())}

    def sample(self, begins: bool, whole: bool, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Latents [B, 16, n, h', w'], the video [B, 3, m, 8h', 8w'] of the last of them, and how much its places count
        [B, 1, 1, 8h', 8w']: `batch` squares, or whole pictures of as many pixels."""
        config, device = self.config, self.latents.device
        if whole and config.crop:
            height, width = self.clips.shape[2:4]
            batch = max(1, batch * config.crop**2 // (height * width))
        chosen = torch.randint(len(self.latents), (batch,), generator=generator, device=device)
        history = 0 if begins else config.history
        room = self.latents.shape[2] - history - config.latents + 1
        # The frames of a later latent 0 would not be those that the network makes of a first one.
        first = torch.randint(0 if begins else 1, 1 if begins else room, (batch,), generator=generator, device=device)
        frames = TIME_STRIDE * config.latents - (TIME_STRIDE - 1 if begins else 0)
        start = torch.zeros_like(first) if begins else TIME_STRIDE * (first + history) - (TIME_STRIDE - 1)
        rows, columns = self._squares(None if whole else self.places[chosen], chosen, generator)
        seen = self.latents.transpose(1, 2)[
            chosen[:, None, None, None],
            _span(first, history + config.latents)[:, :, None, None],
            :,
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        pixel_rows, pixel_columns = (_pixels(cells) for cells in (rows, columns))
        shown = self.clips[
            chosen[:, None, None, None],
            _span(start, frames)[:, :, None, None],
            pixel_rows[:, None, :, None],
            pixel_columns[:, None, None, :],
        ]
        weight = self.weight[pixel_rows[:, :, None], pixel_columns[:, None, :]][:, None, None]
        return seen.movedim(-1, 1).float(), to_unit(shown), weight

    def _squares(self, places: Tensor | None, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows and columns [B, side] of the latents that are shown: of squares, or all where there are no places."""
        if places is None:
            return tuple(_span(torch.zeros_like(chosen), side) for side in self.latents.shape[3:])
        crop = self.config.crop
        corner = moving_corners(places, (crop, crop), generator) // SPACE_STRIDE
        return tuple(_span(corner[:, i], crop // SPACE_STRIDE) for i in range(2))


def _span(start: Tensor, count: int) -> Tensor:
    """[B] -> [B, count] consecutive indices."""
    return start[:, None] + torch.arange(count, device=start.device)


def _pixels(cells: Tensor) -> Tensor:
    """Indices [B, n] of latents along a side -> those [B, 8n] of their pixels."""
    within = torch.arange(SPACE_STRIDE, device=cells.device)
    return (SPACE_STRIDE * cells[:, :, None] + within).flatten(1)


@torch.no_grad()
def encode(vae: WanVAE, clips: Tensor, dtype: torch.dtype, chunk: int = 16) -> Tensor:
    """Standardised latents, bfloat16 [N, 16, F, h, w], of uint8 clips [N, T, H, W, 3]; computed in `dtype`."""
    parts = []
    for part in clips.split(chunk):
        with torch.autocast(clips.device.type, dtype, enabled=dtype != torch.float32):
            parts.append(vae.encode(to_unit(part)).bfloat16())
    return torch.cat(parts)
