"""`bash scripts/bench.sh`: frames a second of a live stream on this machine, and where the time goes.

The stream that is timed is streaming.Session, fed with sound and drained as quickly as it goes. The plain path, the
VAE's own decoder and one thing after the other, runs in the same command as the baseline.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from livetalk.commands import inference, memory
from livetalk.commands.memory import bytes_of
from livetalk.config import InferenceRun
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation import benchmark
from livetalk.evaluation.benchmark import BenchRun, Limits, limits_of, table, timed
from livetalk.families import load_pipeline
from livetalk.geometry import FPS, SAMPLE_RATE, Geometry
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.pipeline import EXAMPLE_IMAGE, example_prompt
from livetalk.streaming.live import Live
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from livetalk.streaming.session import Session

PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "dit": lambda: WanDiT(DiTConfig.wan_1_3b()),
    "vae": lambda: WanVAE(VAEConfig()),
    "audio": lambda: AudioEncoder(AudioConfig.wav2vec2_base()),
}
"""The parts of the published shape that a stream runs."""

KEYS = """
preset=nano|1.3b      the shipped family, or the published shape with random weights
resolution=512x512    width and height in pixels
decoder=small|vae     as at inference; the plain path beside it always has the VAE's
blocks=N              timed in steady state (50)
"""


class RandomText(nn.Module):
    """Stands for a text encoder that is not measured: prompts are encoded once, before a stream begins."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, prompts: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(prompts), self.config.text_len, self.config.text_dim, generator=generator)


def bench(run: BenchRun, dry_run: bool = False) -> None:
    """Prints a table and, last, the JSON file that holds it. Raises ValueError for what the user can mend."""
    device = device_of(run.device)
    dtype = precision_of(run.precision, device)
    if dry_run:
        print(dry(run, dtype))
        return
    settle_gpu()
    began = time.perf_counter()
    usual = performer_of(run, device, dtype)
    plain = with_decoder(usual, usual.vae)
    limits = limits_of(device, dtype)
    paths = [measure("plain", plain, run, overlap=False)]
    if usual.decoder is not usual.vae or device.type == "cuda":
        paths.append(measure("as used", usual, run, overlap=True))
    told = about(run, usual, limits) | {"seconds in all": time.perf_counter() - began}
    output = Path(run.output) / f"{run.preset}-{usual.geometry.width}x{usual.geometry.height}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": told, "paths": {path.name: path.as_dict(limits) for path in paths}, "settings": asdict(run)}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        "; ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items())
    )
    print(table(paths, limits))
    print(output)


def performer_of(run: BenchRun, device: torch.device, dtype: torch.dtype) -> Performer:
    """The preset's performer, with a backlog that holds all the sound."""
    geometry, config = geometry_of(run), StreamConfig(backlog_s=3600)
    if run.preset == "nano":
        return load_pipeline(inference_run(run)).performer(config)
    if run.decoder == "small":
        raise ValueError("preset 1.3b has no small decoder: use decoder=vae")
    parts = {}
    for name, build in PUBLISHED.items():
        with torch.device("meta"):
            module = build()
        parts[name] = randomise(module.to(dtype).to_empty(device=device)).eval().requires_grad_(False)
    parts["vae"].set_statistics()
    timesteps = InferenceRun().causal.timesteps
    text = RandomText(parts["dit"].config)
    return Performer(parts["dit"], parts["vae"], parts["audio"], text, geometry, timesteps, config=config)


def randomise(module: nn.Module) -> nn.Module:
    """Weights of a size that keeps signals finite through many layers."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            value.data.normal_(std=0.02, generator=generator)
            if value.ndim == 1 and name.endswith(("weight", "gamma")):
                value.data.add_(1)
    return module


def inference_run(run: BenchRun) -> InferenceRun:
    """The nano family's, as the bench is asked for it."""
    own = {"device": run.device, "precision": run.precision, "decoder": run.decoder}
    return InferenceRun(geometry=geometry_of(run), **own)


def geometry_of(run: BenchRun) -> Geometry:
    default = InferenceRun().geometry if run.preset == "nano" else Geometry()
    size = run.size()
    return default if size is None else replace(default, width=size[0], height=size[1])


def with_decoder(performer: Performer, decoder: nn.Module) -> Performer:
    """The same, decoding with `decoder`."""
    one = performer
    settings = (one.dit, one.vae, one.audio, one.text, one.geometry, one.timesteps, one.cache.positions, one.config)
    return Performer(*settings, decoder)


def fed(performer: Performer, blocks: int) -> Session:
    """A session with sound for `blocks` blocks; noise costs as much as speech."""
    session = performer.session(EXAMPLE_IMAGE, example_prompt())
    frames = performer.geometry.block_frames(blocks - 1).stop
    sound = np.random.default_rng(0).normal(0, 0.05, frames * SAMPLE_RATE // FPS + SAMPLE_RATE).astype(np.float32)
    session.push_audio(sound)
    session.flush()
    return session


def measure(name: str, performer: Performer, run: BenchRun, overlap: bool) -> benchmark.Path:
    """Times the parts block by block, then the whole."""
    device, blocks = performer.device, run.warmup + run.blocks
    session, denoise, decode, made = fed(performer, blocks), [], [], []
    for _ in range(blocks):
        denoise.append(timed(lambda: made.append(session.denoise_next()), device))
        decode.append(timed(lambda: session.decode_next(made.pop()), device))
    flops = counted(session)
    whole, frames = streamed(performer, run, overlap)
    first = min(timed(fed(performer, 1).next_block, device) for _ in range(3))
    steady = (values[run.warmup :] for values in (denoise, decode))
    return benchmark.Path(name, *steady, whole, frames, first, flops, len(performer.timesteps) + 1)


def counted(session: Session) -> tuple[int, int]:
    """Arithmetic of the denoising and of the decoding of a session's next block."""
    own = {torch.ops.aten.mkldnn_convolution: convolution_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as denoising:
        rendering = session.denoise_next(fill=True)
    with FlopCounterMode(display=False, custom_mapping=own) as decoding:
        session.decode_next(rendering)
    return denoising.get_total_flops(), decoding.get_total_flops()


def convolution_flops(x: list[int], weight: list[int], *_, out_shape: list[int], **__) -> int:
    """Of a convolution that PyTorch's counter does not know."""
    return 2 * prod(out_shape) * prod(weight[1:])


def streamed(performer: Performer, run: BenchRun, overlap: bool) -> tuple[float, int]:
    """Seconds and frames of run.blocks blocks in steady state, as a stream is used."""
    session, taken, start = fed(performer, run.warmup + run.blocks), [], 0.0
    with Live(session, overlap) as live:
        live.finish()
        for block in live:
            taken.append(len(block.frames))
            if len(taken) == run.warmup:
                start = time.perf_counter()
            if len(taken) == run.warmup + run.blocks:
                break
        seconds = time.perf_counter() - start
    return seconds, sum(taken[run.warmup :])


def about(run: BenchRun, performer: Performer, limits: Limits) -> dict:
    """The machine, the versions, and what was measured on it."""
    on_gpu = performer.device.type == "cuda"
    where = torch.cuda.get_device_name(performer.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated(performer.device) if on_gpu else resident
    return {
        "device": where,
        "precision": str(performer.dtype).removeprefix("torch."),
        "decoder": "vae" if performer.decoder is performer.vae else "small",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "window": f"{performer.geometry.window} latents",
        "TFLOP/s of a matrix product": limits.flops / 1e12,
        "GB/s of a copy": limits.bandwidth / 1e9,
        "peak memory, GB": peak / 1e9,
    }


def dry(run: BenchRun, dtype: torch.dtype) -> str:
    """What the preset takes."""
    if run.preset == "nano":
        return inference.memory(inference_run(run))
    with torch.device("meta"):
        rows = {name: bytes_of(build().parameters(), dtype) for name, build in PUBLISHED.items()}
    return memory.table(f"bench: weights of preset {run.preset}, {str(dtype).removeprefix('torch.')}", rows)
