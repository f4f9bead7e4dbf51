"""Audio encoders: sound to one feature vector a video frame, behind one interface, in two kinds.

"clip" is the published encoder, wav2vec2-base-960h (arXiv 2006.11477) over the whole clip as OmniAvatar runs it. Its
sound is normalised over the clip and its positional convolution and attention see all of it, so it cannot stream.
"window" is made for streaming: the feature of frame j comes from one window of sound that ends `lookahead` samples
after j / 16 s, and from nothing else. It is the same whether the sound arrives in pieces or whole.

Shapes: B batch, S samples at 16 kHz, T video frames, C channels of a feature, P positions of the convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from livetalk.checks import at_least
from livetalk.geometry import SAMPLES_PER_FRAME, clip_frames

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
HOP = prod(STRIDES)
FIELD = 400
"""Samples seen by one position of the last convolution; its centre is FIELD / 2 after its first sample."""


@dataclass(frozen=True)
class AudioConfig:
    """Sizes of a wav2vec2 and how it meets the frames. window and lookahead, in samples, are for kind "window" only."""

    kind: str = "clip"
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_norm: str = "group"
    conv_bias: bool = False
    pos_kernel: int = 128
    pos_groups: int = 16
    pre_norm: bool = False
    normalise: bool = True
    window: int = 0
    lookahead: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "hidden", "layers", "heads", "ffn", "conv_dim", "pos_kernel", "pos_groups")
        if self.hidden % self.heads or self.hidden % self.pos_groups:
            raise ValueError(
                f"audio width {self.hidden} does not split into {self.heads} heads and {self.pos_groups} groups"
            )
        if self.kind not in ("clip", "window"):
            raise ValueError(f"audio kind {self.kind!r} is not known: use 'clip' or 'window'")
        if self.kind == "window":
            self._check_window()

    def _check_window(self) -> None:
        if (self.window - FIELD) % HOP or not FIELD // 2 < self.window - self.lookahead < self.window:
            raise ValueError(
                f"audio window {self.window} with lookahead {self.lookahead} samples: the window is {FIELD} + {HOP} n "
                "samples and begins before, and ends after, the sample that its frame shows"
            )
        if self.conv_norm != "layer" or self.normalise:
            raise ValueError(
                "an audio encoder of kind 'window' takes no statistics over time: conv_norm 'layer', normalise false"
            )

    @property
    def channels(self) -> int:
        """C: last hidden state, embedding output and every layer's output."""
        return (self.layers + 2) * self.hidden

    @classmethod
    def wav2vec2_base(cls) -> AudioConfig:
        """facebook/wav2vec2-base-960h: 94 M parameters, 10752 channels."""
        return cls()

    @classmethod
    def nano(cls) -> AudioConfig:
        """The streaming encoder of the nano family: 1.1 M parameters, 768 channels, 0.565 s of sound a frame."""
        return cls(
            kind="window",
            hidden=128,
            layers=4,
            heads=4,
            ffn=512,
            conv_dim=(128,) * 7,
            conv_norm="layer",
            conv_bias=True,
            pos_kernel=8,
            pos_groups=4,
            normalise=False,
            window=FIELD + 27 * HOP,
            lookahead=3200,
        )

    @classmethod
    def from_published(cls, settings: dict) -> AudioConfig:
        """From transformers' argument names, without normalisation of the sound."""
        return cls(
            hidden=settings["hidden_size"],
            layers=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            ffn=settings["intermediate_size"],
            conv_dim=tuple(settings["conv_dim"]),
            conv_norm=settings["feat_extract_norm"],
            pos_kernel=settings["num_conv_pos_embeddings"],
            pos_groups=settings["num_conv_pos_embedding_groups"],
            pre_norm=settings["do_stable_layer_norm"],
            normalise=False,
        )


class AudioEncoder(nn.Module):
    """A wav2vec2 that answers `features(pcm, frames)`; parameters are those of transformers under `model.`."""

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.model = Wav2Vec2Model(_transformers_config(config))

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Loads weights under the names of a published file, strictly."""
        self.load_state_dict({ours: weights[name] for ours, name in published_names(weights).items()}, strict=True)

    def features(self, pcm: Tensor, frames: int) -> Tensor:
        """Features [B, T, C] of `frames` video frames from sound [B, S], where frame j hears the sound at j / 16 s.

        Sound that is too short is followed by silence. Sound beyond the last frame is heard, as far as the lookahead
        goes, by kind "window" and ignored by kind "clip" (except in its normalisation).
        """
        if pcm.ndim != 2 or frames < 1:
            raise ValueError(
                f"audio features need sound [batch, samples] and frames >= 1: got {list(pcm.shape)}, {frames}"
            )
        if self.config.kind == "window":
            before = self.config.window - self.config.lookahead
            return self.windows(_fit(pcm, before, (frames - 1) * SAMPLES_PER_FRAME + self.config.window), frames)
        sound = normalised(pcm) if self.config.normalise else pcm
        # The resampling aligns the first and the last frame with the ends of the sound, so T frames span T-1 intervals.
        return self.resampled(_fit(sound, 0, max((frames - 1) * SAMPLES_PER_FRAME, FIELD)), frames)

    def resampled(self, sound: Tensor, frames: int) -> Tensor:
        """Features [B, T, C] of the whole of `sound` [B, S], exactly as given, laid on `frames` frames.

        The convolutions' output is resampled linearly (first and last aligned) before the feature projection.
        """
        hidden = self._convolve(sound[:, None], 0, len(KERNELS))
        hidden = F.interpolate(hidden, size=frames, mode="linear", align_corners=True)
        return torch.cat(self._states(hidden), dim=-1)

    def centred(self, sound: Tensor, frames: int) -> Tensor:
        """Features [B, T, C] of frames in `sound` [B, (T-1)*1000 + FIELD], frame j centred on sample j*1000 + FIELD/2.

        Where `resampled` lays a frame depends on the length of the clip; here it does not. With clips that begin a
        whole number of positions apart (8 frames), the frames they share lie in the same places.
        """
        assert sound.shape[1] == (frames - 1) * SAMPLES_PER_FRAME + FIELD
        # The last position twice, so that the last frame, too, has one after it.
        hidden = F.pad(self._convolve(sound[:, None], 0, len(KERNELS)), (0, 1), mode="replicate")
        places = torch.arange(frames, device=sound.device) * SAMPLES_PER_FRAME
        left, rest = places // HOP, (places % HOP / HOP).to(hidden.dtype)
        return torch.cat(self._states(torch.lerp(hidden[:, :, left], hidden[:, :, left + 1], rest)), dim=-1)

    def windows(self, sound: Tensor, frames: int, chunk: int = 2048, at_once: int = 128) -> Tensor:
        """Features [B, T, C] of the `frames` windows in `sound` [B, (T-1)*1000 + window], `chunk` windows at a time, of
        no more than `at_once` frames, so that a long sound needs no more memory than a short one.

        The first convolutions, whose common stride divides a frame, run once over the sound of those frames and are
        shared by the overlapping windows: they see the same samples in the same places, so this changes nothing.
        """
        assert sound.shape[1] == (frames - 1) * SAMPLES_PER_FRAME + self.config.window
        if frames > at_once:
            pieces = []
            for start in range(0, frames, at_once):
                count = min(at_once, frames - start)
                heard = sound[:, start * SAMPLES_PER_FRAME :][:, : (count - 1) * SAMPLES_PER_FRAME + self.config.window]
                pieces.append(self.windows(heard, count, chunk, at_once))
            return torch.cat(pieces, dim=1)
        shared = shared_layers()
        stride = prod(STRIDES[:shared])
        hidden = self._convolve(sound[:, None], 0, shared)
        size = _positions(self.config.window, shared)
        hidden = hidden.unfold(2, size, SAMPLES_PER_FRAME // stride)
        hidden = rearrange(hidden, "b c t p -> (b t) c p")
        features = torch.cat([self._window_features(part, shared) for part in hidden.split(chunk)])
        return rearrange(features, "(b t) c -> b t c", t=frames)

    def _window_features(self, hidden: Tensor, layer: int) -> Tensor:
        """[N, c, p] output of the first `layer` convolutions over N windows -> [N, C] at the frame's own sample."""
        position = (self.config.window - self.config.lookahead - FIELD / 2) / HOP
        left = int(position)
        states = self._states(self._convolve(hidden, layer, len(KERNELS)))
        return torch.cat([torch.lerp(state[:, left], state[:, left + 1], position - left) for state in states], dim=-1)

    def _convolve(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """[B, c, p] through the convolutions start .. stop-1 of the feature extractor."""
        for layer in self.model.feature_extractor.conv_layers[start:stop]:
            hidden = layer(hidden)
        return hidden

    def _states(self, extracted: Tensor) -> list[Tensor]:
        """[B, c, P] -> last hidden state, embedding output, output of every layer: layers + 2 times [B, P, hidden].

        The layers are run here because the encoder's own forward returns its last state only. As in the
        published features, the last layer is there twice, both times after the final norm where there is one.
        """
        encoder = self.model.encoder
        hidden = self.model.feature_projection(rearrange(extracted, "b c p -> b p c"))[0]
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self.config.pre_norm:
            hidden = encoder.layer_norm(hidden)
        states = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden)
            states.append(hidden)
        if self.config.pre_norm:
            states[-1] = encoder.layer_norm(hidden)
        return [states[-1], *states]


class AudioStream:
    """Sound in pieces of any length -> features of the frames that became available.

    `AudioStream(encoder).push(a)` then `.push(b)` .. `.finish()`, joined, is `encoder.features(all, clip_frames)`.
    The state is a tensor and two counts, all in snapshot().
    """

    def __init__(self, encoder: AudioEncoder, batch: int = 1):
        if encoder.config.kind != "window":
            raise ValueError(
                f"audio of kind {encoder.config.kind!r} hears the whole clip and cannot stream: use 'window'"
            )
        self.encoder = encoder
        self.config = encoder.config
        weight = next(encoder.parameters())
        self.sound = weight.new_zeros(batch, self.config.window - self.config.lookahead)
        self.received = 0
        self.frames = 0

    @torch.no_grad()
    def push(self, pcm: Tensor) -> Tensor:
        """Takes sound [B, n], n >= 0, and returns [B, k, C]: frames that now have all their sound (k may be 0)."""
        self.sound = torch.cat([self.sound, pcm.to(self.sound)], dim=1)
        self.received += pcm.shape[1]
        return self._take((self.received - self.config.lookahead) // SAMPLES_PER_FRAME + 1)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The remaining frames [B, k, C] of the clip, with silence after its end. Nothing may be pushed afterwards."""
        if not self.received:
            return self._take(0)
        frames = clip_frames(self.received)
        missing = (frames - 1) * SAMPLES_PER_FRAME + self.config.lookahead - self.received
        self.sound = F.pad(self.sound, (0, max(0, missing)))
        return self._take(frames)

    def snapshot(self) -> tuple[Tensor, int, int]:
        """All of the state; what is pushed later does not change it."""
        return self.sound, self.received, self.frames

    def restore(self, state: tuple[Tensor, int, int]) -> None:
        self.sound, self.received, self.frames = state

    def _take(self, until: int) -> Tensor:
        count = until - self.frames
        if count <= 0:
            return self.sound.new_zeros(self.sound.shape[0], 0, self.config.channels)
        span = (count - 1) * SAMPLES_PER_FRAME + self.config.window
        features = self.encoder.windows(self.sound[:, :span], count)
        self.sound = self.sound[:, count * SAMPLES_PER_FRAME :]
        self.frames = until
        return features


class AudioHeads(nn.Module):
    """What the "window" encoder is trained to tell of each frame. Linear, as is the transformer's audio pack."""

    def __init__(self, channels: int, classes: int, curves: int = 2):
        super().__init__()
        self.classes = nn.Linear(channels, classes)
        self.curves = nn.Linear(channels, curves)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] -> class logits [B, T, classes] and curves [B, T, 2] (mouth opening, mouth width)."""
        return self.classes(features), self.curves(features)


def normalised(pcm: Tensor) -> Tensor:
    """Zero mean and unit variance over each clip [B, S], as the published feature extractor does (eps 1e-7)."""
    mean = pcm.mean(dim=1, keepdim=True)
    variance = pcm.var(dim=1, keepdim=True, unbiased=False)
    return (pcm - mean) / torch.sqrt(variance + 1e-7)


def shared_layers() -> int:
    """How many of the first convolutions have a common stride that divides a frame's samples."""
    return max(n for n in range(len(STRIDES) + 1) if SAMPLES_PER_FRAME % prod(STRIDES[:n]) == 0)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Our parameter name for each name of a published wav2vec2 file, as {ours: theirs}.

    The hub's prefix "wav2vec2." and the older weight_g / weight_v form of the positional convolution are accepted; the
    recogniser's lm_head is left out.
    """
    forms = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    ours = {}
    for name in names:
        inner = name.removeprefix("wav2vec2.")
        if inner.startswith("lm_head."):
            continue
        stem, _, leaf = inner.rpartition(".")
        if stem == "encoder.pos_conv_embed.conv" and leaf in forms:
            inner = f"{stem}.{forms[leaf]}"
        ours[f"model.{inner}"] = name
    return ours


def _transformers_config(config: AudioConfig) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        conv_dim=list(config.conv_dim),
        conv_kernel=list(KERNELS),
        conv_stride=list(STRIDES),
        conv_bias=config.conv_bias,
        feat_extract_norm=config.conv_norm,
        num_conv_pos_embeddings=config.pos_kernel,
        num_conv_pos_embedding_groups=config.pos_groups,
        do_stable_layer_norm=config.pre_norm,
        # Published files hold the mask embedding of pre-training, which exists only where masking is configured.
        mask_time_prob=0.05 if config.kind == "clip" else 0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
    )


def _fit(sound: Tensor, before: int, length: int) -> Tensor:
    """[B, S] with `before` zeros in front, then cut or filled with zeros to `length`."""
    return F.pad(sound, (before, length - before - sound.shape[1]))


def _positions(samples: int, layers: int) -> int:
    """Outputs of the first `layers` convolutions over `samples` samples."""
    for kernel, stride in zip(KERNELS[:layers], STRIDES[:layers], strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
