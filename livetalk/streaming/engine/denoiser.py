"""Blocks of a stream by the same sampler as rollout.denoise_block, from captured passes.

What differs from the plain path, exactly: queries, keys and values are one product; the last pass leaves out what its
last layer does beyond keys and values; padding of the text is attended to once; keys stay rotated; what depends on the
timestep alone is computed once for all blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import torch
from einops import rearrange
from torch import Tensor

from livetalk import flow
from livetalk.conditions import Conditions, pin
from livetalk.geometry import PATCH
from livetalk.graphs import Captured
from livetalk.models.dit import WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.rollout import CLEAN
from livetalk.streaming.engine import layers
from livetalk.streaming.engine.attention import E4M3, choose
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.layers import Modulations, modulations_of, weights_of
from livetalk.streaming.engine.linear import can_fp8, halves_pay, linear_of
from livetalk.streaming.engine.text import TextMemory
from livetalk.streaming.engine.undo import host_bytes
from livetalk.streaming.engine.window import WindowCache, leaving_of, turn, turn_by_layer

SHAPES = 64
"""Forms of one function that may be compiled: kinds of layers, times sizes of what a filling window keeps."""


class Denoiser:
    """What all streams share: weights in the form the passes read, and the kernels. The transformer's own parameters
    become parts of the joined ones; its values stay what they are."""

    @torch.inference_mode()
    def __init__(
        self, dit: WanDiT, cache: CacheConfig, rows: int, columns: int, timesteps: Sequence[float], config: EngineConfig
    ) -> None:
        self.dit, self.cache, self.rows, self.columns = dit, cache, rows, columns
        self.levels = [float(t) for t in timesteps]
        like = dit.patch_embedding.weight
        self.device, self.dtype = like.device, like.dtype
        gpu = self.device.type == "cuda"
        tokens, sizes = rows * columns, dit.config
        shape = (cache.block * tokens, cache.window * tokens, sizes.heads, sizes.head_dim)
        self.linears = self._linears(config.linears, shape[0])
        half = self.linears == "bfloat16" and not gpu
        self.attention, self._attend = choose(config.attention, self.device, shape, self.dtype, half)
        self.key_dtype = E4M3 if config.attention == "fa3-fp8" else self.dtype
        self.host = config.on_host(gpu)
        self.graphs, self.compiled = config.on(config.graphs, gpu) and gpu, config.on(config.compile, gpu)
        self._weights = [weights_of(block, self.linears) for block in dit.blocks]
        self._times = {level: modulations_of(dit, level, like) for level in (*self.levels, CLEAN)}
        self._head = linear_of(dit.head.head)
        parts = ("before", "between", "after", "embedded", "flow_of")
        functions = {name: vars(layers)[name] for name in parts}
        self.turn = turn_by_layer
        if self.compiled:
            compiled = partial(torch.compile, fullgraph=True, dynamic=False)
            functions = {name: compiled(act) for name, act in functions.items()}
            self.turn = compiled(turn)
        self._parts = SimpleNamespace(**functions)

    def _linears(self, wanted: str, rows: int) -> str:
        """The kind of linear layers; of float32 networks alone bfloat16 is another kind. Raises ValueError for fp8
        that is not to be had."""
        if wanted.startswith("fp8") and not can_fp8(self.device, self.dtype):
            raise ValueError(f"engine.linears={wanted} needs a card of 2022 or later and precision=bfloat16: use exact")
        wide = self.dtype == torch.float32
        if wanted == "auto":
            sizes = self.dit.config
            pays = self.device.type == "cpu" and wide and halves_pay(rows, sizes.dim, sizes.ffn_dim)
            return "bfloat16" if pays else "exact"
        return "exact" if wanted == "bfloat16" and not wide else wanted

    def plan(self) -> dict[str, int]:
        """Bytes: weights in fp8 beside the network's own, and a seat's window, its journal and text."""
        sizes, cache, tokens = self.dit.config, self.cache, self.rows * self.columns
        narrow = [layer for w in self._weights for layer in (w.qkv, w.ffn1, w.ffn2) if layer.scale is not None]
        frame = sizes.layers * tokens * sizes.dim
        own, keys = self.dtype.itemsize, self.key_dtype.itemsize
        kinds = {"dtype": self.dtype, "key_dtype": self.key_dtype}
        leaving = leaving_of(sizes.layers, cache.block * tokens, sizes.heads, sizes.head_dim, **kinds)
        entry = sum(one.nbytes for one in leaving)
        window = frame * (2 * keys * cache.window + own * cache.ring)
        if self.host:
            # One entry is on its way out.
            kept = {"window": window + entry, "window's journal (on the host)": host_bytes(leaving, cache.journal)}
        else:
            kept = {"window": window, "window's journal": entry * cache.journal}
        return {
            "fp8 weights": sum(layer.weight.nbytes for layer in narrow),
            **kept,
            "text": 2 * sizes.layers * sizes.text_len * sizes.dim * own,
        }

    def conditions(self, audio: Tensor | None, reference: Tensor | None, first: int) -> tuple[dict, Tensor]:
        """What all passes over a block share: a vector a frame [F, D] by layer, and tokens of the reference [S, D]."""
        given = Conditions(audio, reference, audio, first=first)
        frames = self.cache.block
        heard = {layer: vector[0, :, 0] for layer, vector in self.dit._audio(given, frames).items()}
        seen = self.dit._reference(given, frames)
        return heard, 0 if seen is None else seen[0].flatten(0, 1)

    def run(
        self, x: Tensor, level: float, heard: dict, reference: Tensor, window: WindowCache, text: TextMemory
    ) -> Tensor | None:
        """One pass over latents x [1, 16, F, h, w]: their flow, or, at the clean level, None: keys and values alone."""
        parts, eps, times = self._parts, self.dit.config.eps, self._times[level]
        clean, table, last = level == CLEAN, window.own_ranks(), len(self._weights) - 1
        tokens = self._tokens(x, reference)
        for layer, weights in enumerate(self._weights):
            own, m = window.own(layer), times.blocks[layer]
            raw = own.raw if clean and len(own.raw) else None
            audio = heard.get(layer)
            tokens, q = parts.before(tokens, m, audio, weights, table, own.keys, own.values, raw, eps)
            if clean and layer == last:
                return None
            attended = self._attend(q, own.seen_keys, own.seen_values)
            tokens, q = parts.between(tokens, attended, m, weights, self.dit.config.heads, eps)
            tokens = parts.after(tokens, text.attend(layer, q), m, weights, eps)
        return self._flow(tokens, times, x)

    def _tokens(self, x: Tensor, reference: Tensor) -> Tensor:
        patches = rearrange(x[0], "c f (r p) (w q) -> (f r w) (c p q)", p=PATCH, q=PATCH)
        weight = self.dit.patch_embedding.weight[:, : x.shape[1]].flatten(1)
        return self._parts.embedded(patches, weight, self.dit.patch_embedding.bias, reference)

    def _flow(self, tokens: Tensor, times: Modulations, x: Tensor) -> Tensor:
        out = self._parts.flow_of(tokens, times.head, self._head, self.dit.config.eps)
        sizes = {"f": x.shape[2], "r": self.rows, "p": PATCH, "q": PATCH}
        return rearrange(out, "(f r w) (p q c) -> 1 c f (r p) (w q)", **sizes)


class DenoisedStream:
    """One stream's memory and graphs. `denoise` gives a block's latents, `keep` makes later blocks see it."""

    @torch.inference_mode()
    def __init__(self, shared: Denoiser) -> None:
        self.shared = shared
        dit, new = shared.dit.config, {"dtype": shared.dtype, "device": shared.device}
        sizes = {"layers": dit.layers, "heads": dit.heads, "head_dim": dit.head_dim}
        grid = {"rows": shared.rows, "columns": shared.columns}
        own = {"key_dtype": shared.key_dtype, "host": shared.host, "turn": shared.turn}
        self.window = WindowCache(shared.cache, **sizes, **grid, **new, **own)
        self.text = TextMemory(shared.dit, **new)
        self._text: Tensor | None = None
        self._denoisers: dict[tuple[int, bool], Captured] = {}
        self._keepers: dict[tuple[int, bool], Captured] = {}
        self._given: tuple[Tensor, ...] = ()
        self._capture()

    def reset(self) -> None:
        """Before the first block; memory and graphs stay."""
        self.window.reset()

    @torch.inference_mode()
    def prompt(self, text: Tensor) -> None:
        """Makes ready for a block with text features [1, L, text_dim]; waits for the card if they are new."""
        if self._text is not text:
            self.text.fill(text)
            self._text = text

    @torch.inference_mode()
    def denoise(self, conditions: Conditions, noise: Tensor) -> Tensor:
        """Clean latents [1, 16, F, h, w] of the next block, from noise [steps, 1, 16, F, h, w]."""
        self.prompt(conditions.text)
        self.window.advance()
        self._given = (conditions.audio, conditions.reference)
        return self._denoisers[self._kind()](noise, *self._given).clone()

    @torch.inference_mode()
    def keep(self, latents: Tensor) -> None:
        """The clean pass over the block just denoised."""
        self._keepers[self._kind()](latents, *self._given)

    def rewind(self, blocks: int) -> None:
        """Undoes the latest blocks."""
        self.window.rewind(blocks)

    def _kind(self) -> tuple[int, bool]:
        """Latent frames in use, and whether the block begins with the picture itself."""
        return self.window.fill, self.window.blocks == 1

    def _capture(self) -> None:
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            self._capture_all()

    def _capture_all(self) -> None:
        shared = self.shared
        stream = torch.cuda.Stream(shared.device) if shared.graphs else None
        pool = torch.cuda.graph_pool_handle() if shared.graphs else None
        noise, audio, reference = self._examples()
        kinds = len(self.window.fills())
        # With a window of one block the first and the later ones have the same size but not the same picture.
        for _ in range(max(2, kinds)):
            self.window.advance()
            self._denoisers[self._kind()] = Captured(self._denoise(), (noise, audio, reference), stream, pool)
            self._keepers[self._kind()] = Captured(self._keep(), (noise[0], audio, reference), stream, pool)
        self.window.reset()

    def _examples(self) -> tuple[Tensor, Tensor, Tensor]:
        shared, config = self.shared, self.shared.dit.config
        new, frames = {"dtype": shared.dtype, "device": shared.device}, shared.cache.block
        size = (PATCH * shared.rows, PATCH * shared.columns)
        noise = torch.randn(len(shared.levels), 1, config.out_channels, frames, *size, **new)
        audio = torch.zeros(1, frames, shared.dit.audio_proj.proj.in_features, **new)
        return noise, audio, torch.zeros(1, config.out_channels, 1, *size, **new)

    def _denoise(self):
        """The passes of one kind of block but for the last, as a function of tensors."""
        shared, window, text, first = self.shared, self.window, self.text, self.window.blocks == 1

        def act(noise: Tensor, audio: Tensor, reference: Tensor) -> Tensor:
            heard, tokens = shared.conditions(audio, reference, 0 if first else shared.cache.block)
            given = reference if first else None
            x, levels = noise[0], shared.levels
            for index, level in enumerate(levels):
                x = pin(x, given)
                x0 = flow.x0_from_flow(x, shared.run(x, level, heard, tokens, window, text), flow.sigma_of(level))
                if index + 1 < len(levels):
                    x = flow.add_noise(x0, noise[index + 1], flow.sigma_of(levels[index + 1]))
            return pin(x0, given)

        return act

    def _keep(self):
        shared, window, text, first = self.shared, self.window, self.text, self.window.blocks == 1

        def act(x0: Tensor, audio: Tensor, reference: Tensor) -> Tensor:
            heard, tokens = shared.conditions(audio, reference, 0 if first else shared.cache.block)
            shared.run(x0, CLEAN, heard, tokens, window, text)
            return x0

        return act
