"""Flow matching for the teacher, with its text encoder trained along and conditions dropped at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livetalk import flow
from livetalk.checks import above, at_least, shares
from livetalk.conditions import Conditions, group_audio
from livetalk.data.encoded import EncodedClips
from livetalk.geometry import tokens_of
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import WanDiT
from livetalk.models.text import TextEncoder
from livetalk.training.losses import NoisedPlaces, flow_loss


@dataclass(frozen=True)
class FlowMatchingConfig:
    """drop_audio: share of samples without sound; drop_text: share of the others without prompt (half of the silent).

    prefix: clean latents at the start of a window that continues a clip (sampled with share `continued`);
    shift: of the training levels towards noise; moving: extra weight of what moves (losses.moving_weight); places:
    where errors count more.
    causal: latent frames of a block that sees itself and earlier blocks only (0: every frame sees all).
    """

    drop_audio: float = 0.1
    drop_text: float = 0.1
    continued: float = 0.4
    prefix: int = 4
    shift: float = 3.0
    moving: float = 0.5
    places: NoisedPlaces = NoisedPlaces()
    latents: int = 21
    causal: int = 0

    def __post_init__(self) -> None:
        shares(self, "drop_audio", "drop_text", "continued")
        at_least(1, self, "latents", "prefix")
        if self.prefix >= self.latents:
            raise ValueError(f"flow.prefix={self.prefix}: a window of {self.latents} latents is longer than its prefix")
        at_least(0, self, "moving")
        above(0, self, "shift")
        if self.causal < 0 or self.causal > self.latents:
            raise ValueError(
                f"flow.causal={self.causal}: choose 0 (bidirectional) or up to {self.latents} frames a block"
            )


@dataclass(frozen=True)
class Prompts:
    """Token ids and masks [N, L] of the clips' prompts and [1, L] of the empty one."""

    ids: Tensor
    mask: Tensor
    empty_ids: Tensor
    empty_mask: Tensor


@dataclass(frozen=True)
class PromptFeatures:
    """What a text encoder that does not learn makes of the clips' prompts [N, L, D] and of the empty one [1, L, D]."""

    known: Tensor
    empty: Tensor


class FlowMatchingObjective:
    """clips and prompts live on the training device; the clips are longer than a window by what continuations need.
    text: the encoder that learns along; None with PromptFeatures.

    Raises ValueError if a window of config.latents does not fit the clips.
    """

    def __init__(
        self,
        dit: WanDiT,
        text: TextEncoder | None,
        clips: EncodedClips,
        prompts: Prompts | PromptFeatures,
        config: FlowMatchingConfig,
    ) -> None:
        length = clips.latents.shape[2]
        if config.latents > length:
            raise ValueError(f"flow.latents={config.latents} on clips of {length}: a window is no longer than a clip")
        if config.places.shut_more and clips.shut is None:
            why = "these clips do not say when lids are shut, as rendered ones now do"
            raise ValueError(f"flow.places.shut_more={config.places.shut_more:g}: {why}; set 0, or render them again")
        self.dit, self.text, self.clips, self.prompts, self.config = dit, text, clips, prompts, config
        self.attend = BlockCausal(config.causal) if config.causal else FullAttention()

    def modules(self) -> dict[str, nn.Module]:
        return {"dit": self.dit} if self.text is None else {"dit": self.dit, "text": self.text}

    def loss(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x0, conditions, shut = self.sample(step, batch, generator)
        device = x0.device
        sigma = flow.shift_sigma(torch.rand(batch, generator=generator, device=device).double(), self.config.shift)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        given = torch.arange(x0.shape[2], device=device) < conditions.prefix
        xt = torch.where(given[:, None, None], x0, flow.add_noise(x0, noise, sigma))
        predicted = self.dit(xt, 1000 * sigma, conditions, self.attend)
        skip, config = given.expand(batch, -1), self.config
        places = config.places.weight_at(*x0.shape[3:], sigma, shut)
        return flow_loss(predicted, x0, noise, skip, config.moving, places), {}

    @property
    def tokens(self) -> int:
        return tokens_of(self.config.latents, *self.clips.latents.shape[-2:])

    def kind(self, step: int) -> bool:
        """Whether the windows of a step continue clips, which a share `continued` of the steps do."""
        share = self.config.continued if self.clips.latents.shape[2] > self.config.latents else 0.0
        return int((step + 1) * share) > int(step * share)

    def sample(self, step: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Conditions, Tensor | None]:
        """Clean latents [B, 16, latents, h, w], their conditions, and where lids are shut [B, latents], if that is
        known: all starts of clips, or all continuations.

        One kind a step, so that the known prefix has one length in a batch.
        """
        data, config = self.clips, self.config
        device = data.latents.device
        chosen = torch.randint(len(data), (batch,), generator=generator, device=device)
        spare, continued = data.latents.shape[2] - config.latents, self.kind(step)
        start = torch.randint(1, spare + 1, (batch, 1), generator=generator, device=device) if continued else 0
        index = start + torch.arange(config.latents, device=device).expand(batch, -1)
        latents = data.latents.transpose(1, 2)[chosen[:, None], index].transpose(1, 2).float()
        audio = group_audio(data.audio[chosen]).gather(1, index[..., None].expand(-1, -1, 4 * data.audio.shape[-1]))
        heard = torch.rand(batch, 1, 1, generator=generator, device=device) >= config.drop_audio
        # Guidance leans on the null prediction, neither sound nor prompt: half of the silent samples are that.
        dropped = torch.where(heard[:, 0], config.drop_text, max(config.drop_text, 0.5))
        text = self._text(chosen, torch.rand(batch, 1, generator=generator, device=device) >= dropped)
        reference = data.latents[chosen, :, :1].float()
        shut = None if data.shut is None else data.shut[chosen[:, None], index]
        prefix = config.prefix if continued else 1
        return latents, Conditions(text, reference, audio.float() * heard, prefix=prefix), shut

    def _text(self, chosen: Tensor, told: Tensor) -> Tensor:
        prompts = self.prompts
        if isinstance(prompts, PromptFeatures):
            return torch.where(told[..., None], prompts.known[chosen], prompts.empty).float()
        ids = torch.where(told, prompts.ids[chosen], prompts.empty_ids)
        return self.text.features(ids, torch.where(told, prompts.mask[chosen], prompts.empty_mask))
