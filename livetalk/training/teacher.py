"""Flow matching for the bidirectional teacher, with its text encoder trained along and conditions dropped at random."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from livetalk import flow
from livetalk.conditions import Conditions, group_audio
from livetalk.models.attention import FullAttention
from livetalk.models.dit import WanDiT
from livetalk.models.text import TextEncoder
from livetalk.training.losses import flow_loss


@dataclass(frozen=True)
class FlowMatchingConfig:
    """drop_audio: share of samples without sound; drop_text: of those and of the others, without prompt.

    prefix: clean latents at the start of a window that continues a clip (sampled with share `continued`);
    shift: of the training levels towards noise.
    """

    drop_audio: float = 0.1
    drop_text: float = 0.1
    continued: float = 0.4
    prefix: int = 4
    shift: float = 3.0
    latents: int = 21


@dataclass(frozen=True)
class EncodedClips:
    """Clips ready for training, on one device. N clips of F latents, T = 4F - 3 frames.

    latents [N, 16, F, h, w]; references [N, 16, 1, h, w]; audio [N, T, C]; ids, mask [N, L] of the prompts;
    empty_ids, empty_mask [1, L] of the empty prompt.
    """

    latents: Tensor
    references: Tensor
    audio: Tensor
    ids: Tensor
    mask: Tensor
    empty_ids: Tensor
    empty_mask: Tensor


class FlowMatchingObjective:
    def __init__(self, dit: WanDiT, text: TextEncoder, clips: EncodedClips, config: FlowMatchingConfig) -> None:
        self.dit, self.text, self.clips, self.config = dit, text, clips, config

    def modules(self) -> dict[str, nn.Module]:
        return {"dit": self.dit, "text": self.text}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0, conditions = self.sample(step, batch, generator)
        device = x0.device
        sigma = flow.shift_sigma(torch.rand(batch, generator=generator, device=device).double(), self.config.shift)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        given = torch.arange(x0.shape[2], device=device) < conditions.prefix
        xt = torch.where(given[:, None, None], x0, flow.add_noise(x0, noise, sigma))
        predicted = self.dit(xt, 1000 * sigma, conditions, FullAttention())
        loss = flow_loss(predicted, x0, noise, skip=given.expand(batch, -1))
        return loss, {}

    def sample(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Conditions]:
        """Clean latents [B, 16, latents, h, w] and their conditions: all starts of clips, or all continuations.

        One kind a step, so that the known prefix has one length in a batch.
        """
        data, config = self.clips, self.config
        device = data.latents.device
        chosen = torch.randint(len(data.latents), (batch,), generator=generator, device=device)
        spare = data.latents.shape[2] - config.latents
        cycle = (step * config.continued) % 1
        continued = spare > 0 and cycle + config.continued >= 1
        start = torch.randint(1, spare + 1, (batch,), generator=generator, device=device) if continued else None
        frames = torch.arange(config.latents, device=device)
        index = frames.expand(batch, -1) if start is None else start[:, None] + frames
        rows = chosen[:, None]
        latents = data.latents.transpose(1, 2)[rows, index].transpose(1, 2).float()
        audio = group_audio(data.audio[chosen])
        audio = torch.gather(audio, 1, index[..., None].expand(-1, -1, audio.shape[-1])).float()
        keep_audio = torch.rand(batch, generator=generator, device=device) >= config.drop_audio
        keep_text = torch.rand(batch, generator=generator, device=device) >= config.drop_text
        text = self.text.features(
            torch.where(keep_text[:, None], data.ids[chosen], data.empty_ids),
            torch.where(keep_text[:, None], data.mask[chosen], data.empty_mask),
        )
        conditions = Conditions(
            text, data.references[chosen].float(), audio * keep_audio[:, None, None], prefix=config.prefix
        )
        return latents, conditions if continued else replace(conditions, prefix=1)
