"""What the engine does, setting by setting; each can be turned back to the plain way."""

from __future__ import annotations

from dataclasses import dataclass

PATHS = ("auto", "fast", "plain")
SWITCH = ("auto", "on", "off")
UNDO = ("auto", "device", "host")
ATTENTION = ("auto", "cudnn", "flash", "efficient", "sdpa", "fa3", "fa3-fp8", "half")
LINEARS = ("exact", "bfloat16", "fp8", "fp8-qkv", "auto")
DECODERS = ("auto", "fused", "plain")
PRECISIONS = ("model", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class EngineConfig:
    """How blocks are made.

    path: plain is the slow, obvious one and the others' test; fast is what is set here; auto is fast but for absolute
    positions. graphs, compile: CUDA graphs, torch.compile; auto is on on a GPU.

    attention: the kernel of the transformer's self-attention; auto is the fastest that is as exact as the precision, by
    measurement at the start; fa3-fp8 has an error of its own, and so has half, bfloat16 on a CPU.

    linears: fp8 has rows of activations and of weights in e4m3 with a scale each, in the three large projections of a
    layer, fp8-qkv in the first of them, that of attention, alone: less gained, at less than half the error; bfloat16,
    of a float32 network, has all products of a layer in it, and attention where that is quicker; auto is bfloat16 on a
    CPU where a probe finds it much quicker.

    decoder: fused is the VAE's own with norms, activations and padding in one kernel (auto, on a GPU), in
    decoder_precision. overlap: on decodes a block beside the denoising of the next, in a lane of its own, as suits two
    cores of a CPU; off decodes it right after its own denoising, in the same lane, as suits a GPU, whose kernels want
    all of it. decode_device: another GPU to decode on, "" for the same; its work always overlaps.

    undo: where that lies which it takes to take blocks back, the window's journal and the fused decoder's snapshots:
    host is pinned memory, copied to beside the work and back only when blocks are taken back; auto is host on a GPU,
    which saves a third of its memory and a copy in the lane, at the cost of some milliseconds after an interruption.
    """

    path: str = "auto"
    graphs: str = "auto"
    compile: str = "auto"
    attention: str = "auto"
    linears: str = "exact"
    decoder: str = "auto"
    decoder_precision: str = "model"
    overlap: str = "auto"
    decode_device: str = ""
    undo: str = "auto"

    def __post_init__(self) -> None:
        known = {
            "path": PATHS,
            "graphs": SWITCH,
            "compile": SWITCH,
            "attention": ATTENTION,
            "linears": LINEARS,
            "decoder": DECODERS,
            "decoder_precision": PRECISIONS,
            "overlap": SWITCH,
            "undo": UNDO,
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"engine.{name} {getattr(self, name)!r} is not known: use {', '.join(choices)}")

    def on(self, switch: str, gpu: bool) -> bool:
        """What graphs or compile says."""
        return gpu if switch == "auto" else switch == "on"

    def on_host(self, gpu: bool) -> bool:
        """What undo says."""
        return gpu if self.undo == "auto" else self.undo == "host"
