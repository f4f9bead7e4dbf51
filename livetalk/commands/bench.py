"""`bash scripts/bench.sh`: frames a second of a live stream on this machine, and where the time goes.

The stream that is timed is streaming.Session, fed with sound and drained as quickly as it goes. The plain path, the
VAE's own decoder and one kernel and one thing after the other, runs in the same command as the baseline.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from livetalk.checks import made_folder
from livetalk.commands import inference, latency, memory
from livetalk.commands.memory import bytes_of
from livetalk.config import InferenceRun
from livetalk.devices import device_of, precision_of, settle_gpu
from livetalk.evaluation import benchmark
from livetalk.evaluation.benchmark import Limits, limits_of, table, timed
from livetalk.families import load_pipeline
from livetalk.geometry import FPS, SAMPLE_RATE, Geometry
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, TrueColours
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.pipeline import EXAMPLE_IMAGE, example_prompt
from livetalk.streaming.bench import BenchRun
from livetalk.streaming.engine.attention import has_fa3
from livetalk.streaming.engine.config import EngineConfig
from livetalk.streaming.engine.engine import is_fast
from livetalk.streaming.engine.linear import can_fp8
from livetalk.streaming.live import Live
from livetalk.streaming.pace import StreamConfig
from livetalk.streaming.performer import Performer
from livetalk.streaming.session import Session
from livetalk.streaming.take import Rendering

log = logging.getLogger(__name__)
KERNELS = 40

PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "dit": lambda: WanDiT(DiTConfig.wan_1_3b()),
    "vae": lambda: WanVAE(VAEConfig()),
    "audio": lambda: AudioEncoder(AudioConfig.wav2vec2_base()),
}
"""The parts of the published shape that a stream runs."""
SMALL: dict[str, Callable[[], nn.Module]] = {"small": lambda: SmallDecoder(SmallDecoderConfig())}
"""Of the shape that ships with the nano family: it reads latents of the same channels."""
CPU_WAYS = ("plain", "exact", "half")

KEYS = """
preset=nano|1.3b      the shipped family, or the published shape with random weights
resolution=512x512    width and height in pixels
decoder=small|vae     as at inference (of preset 1.3b: vae); the plain path beside it always has the VAE's
ways=[plain,exact,fp8]  what to time side by side; on a CPU [plain,exact,half]: half has products in bfloat16
engine.KEY=...        how blocks are made, see the keys below
blocks=N              timed in steady state, 10 or more (50)
live=true             time from a typed sentence to the first frame that answers, by stages (or --live)
"""


class RandomText(nn.Module):
    """Stands for a text encoder that is not measured: prompts are encoded once, before a stream begins. words: tokens
    of every prompt; what follows is padding, zeros."""

    def __init__(self, config: DiTConfig, words: int) -> None:
        super().__init__()
        self.config, self.words = config, words

    def encode(self, prompts: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        text = torch.randn(len(prompts), self.config.text_len, self.config.text_dim, generator=generator)
        text[:, self.words :] = 0
        return text


def bench(run: BenchRun, dry_run: bool = False) -> None:
    """Prints a table and, last, the JSON file that holds it. Raises ValueError for what the user can mend."""
    device = device_of(run.device)
    dtype = precision_of(run.precision, device)
    if dry_run:
        print(dry(run, dtype))
        return
    made_folder("output", run.output)
    settle_gpu()
    began = time.perf_counter()
    usual = performer_of(run, device, dtype)
    if run.live:
        latency.live(run, usual)
        return
    loaded = time.perf_counter() - began
    paths: list[benchmark.Path] = []
    for name, performer in ways_of(run, usual):
        paths.append(measure(name, performer, run, overlap=name != "plain"))
        path = paths[-1]
        log.info(
            "%s: %.1f FPS; %.1f ms a block to denoise, %.1f to decode; first after %.0f; ready after %.1f s; %.1f GB",
            *(path.name, path.fps, 1e3 * np.median(path.denoise), 1e3 * np.median(path.decode)),
            *(1e3 * path.first, path.ready, path.memory / 1e9),
        )
        # What another way holds on the card is not this one's.
        del performer
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not all(path.flops[0] for path in paths):
        # Graphs and kernels of our own are not counted; the arithmetic of a block is the same on the plain way.
        flops = counted(warm(with_engine(usual, replace(run.engine, path="plain")), run))
        paths = [path if path.flops[0] else replace(path, flops=flops) for path in paths]
    limits = limits_of(device, dtype)  # last, since a process never holds less at most than it did before
    told = about(run, usual, limits) | {"s to load": loaded, "s in all": time.perf_counter() - began}
    output = Path(run.output) / f"{run.preset}-{usual.geometry.width}x{usual.geometry.height}.json"
    content = {"about": told, "paths": {path.name: path.as_dict(limits) for path in paths}, "settings": asdict(run)}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        "; ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items())
    )
    for path in paths:
        print(f"{path.name}: {path.told}")
    print(table(paths, limits))
    print(output)


def ways_of(run: BenchRun, usual: Performer) -> Iterator[tuple[str, Performer]]:
    """What is timed, by name, made when its turn comes. On a CPU the plain way has the VAE's decoder."""
    gpu, engine = usual.device.type == "cuda", replace(run.engine, path="fast")
    usually = ("plain", "exact", *(["fp8"] if can_fp8(usual.device, usual.dtype) else [])) if gpu else CPU_WAYS
    for way in run.ways or usually:
        if way == "plain":
            yield way, with_engine(usual, replace(engine, path="plain"), usual.vae)
        elif way == "exact":
            # On a CPU what a stream takes by itself is measured, whichever that is.
            yield ("exact", with_engine(usual, engine)) if gpu else ("as used", with_engine(usual, run.engine))
        elif way == "half":
            yield way, with_engine(usual, replace(engine, linears="bfloat16"))
        else:
            attention = "fa3-fp8" if gpu and has_fa3() else engine.attention
            yield way, with_engine(usual, replace(engine, linears="fp8", attention=attention))


def performer_of(run: BenchRun, device: torch.device, dtype: torch.dtype) -> Performer:
    """The preset's performer, with a backlog that holds all the sound."""
    geometry, config = geometry_of(run), StreamConfig(backlog_s=3600)
    if run.preset == "nano":
        return load_pipeline(inference_run(run)).performer(config)
    parts = {}
    for name, build in builds_of(run).items():
        with torch.device("meta"):
            module = build()
        parts[name] = randomise(module.to(dtype).to_empty(device=device)).eval().requires_grad_(False)
    dit, vae, audio = (parts[name] for name in PUBLISHED)
    vae.set_statistics()
    text, timesteps = RandomText(dit.config, run.words), InferenceRun().causal.timesteps
    decoder = TrueColours(parts["small"], vae) if "small" in parts else None
    return Performer(dit, vae, audio, text, geometry, timesteps, config=config, decoder=decoder)


def builds_of(run: BenchRun) -> dict[str, Callable[[], nn.Module]]:
    """The parts of the published shape, with a small decoder if that is asked for."""
    return PUBLISHED | (SMALL if run.decoder == "small" else {})


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


def with_engine(performer: Performer, engine: EngineConfig, decoder: nn.Module | None = None) -> Performer:
    """The same weights, used as `engine` says, with another decoder if one is given."""
    one, config = performer, replace(performer.config, engine=engine)
    settings = (one.dit, one.vae, one.audio, one.text, one.geometry, one.timesteps, one.cache.positions, config)
    return Performer(*settings, one.decoder if decoder is None else decoder)


def fed(performer: Performer, blocks: int) -> Session:
    """A session with sound for `blocks` blocks; noise costs as much as speech."""
    session = performer.session(EXAMPLE_IMAGE, example_prompt())
    frames = performer.geometry.block_frames(blocks - 1).stop
    sound = np.random.default_rng(0).normal(0, 0.05, frames * SAMPLE_RATE // FPS + SAMPLE_RATE).astype(np.float32)
    session.push_audio(sound)
    session.flush()
    return session


def measure(name: str, performer: Performer, run: BenchRun, overlap: bool) -> benchmark.Path:
    """Times the start, then the parts block by block, then the whole."""
    device = performer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ready = timed(lambda: fed(performer, 1).next_block(), device)
    denoise, decode, flops = parts(name, performer, run)
    whole, frames = streamed(performer, run, overlap)
    first = min(timed(partial(first_frames, fed(performer, 1)), device, after=False) for _ in range(3))
    first_whole = min(timed(partial(first_frames_anew, performer), device, after=False) for _ in range(3))
    steady = (values[run.warmup :] for values in (denoise, decode))
    return benchmark.Path(
        name,
        *steady,
        whole,
        frames,
        first,
        flops,
        len(performer.timesteps) + 1,
        first_whole,
        ready,
        memory_of(device),
        performer.engine.told()
        if is_fast(performer.config.engine, performer)
        else f"{str(performer.dtype).removeprefix('torch.')}, eager",
    )


def first_frames(session: Session) -> None:
    """Until they are on the host."""
    session.decode_next(session.denoise_next())


def first_frames_anew(performer: Performer) -> None:
    """The same, picture and prompt encoded anew."""
    performer.prompts.forget()
    first_frames(fed(performer, 1))


def warm(performer: Performer, run: BenchRun) -> Session:
    """A session whose window is full, with sound for another block."""
    session = fed(performer, run.warmup + 1)
    for _ in range(run.warmup):
        session.next_block()
    return session


def parts(name: str, performer: Performer, run: BenchRun) -> tuple[list[float], list[float], tuple[int, int]]:
    """Seconds of every block's denoising and decoding, one after the other, and their arithmetic, (0, 0) if unknown."""
    device, blocks = performer.device, run.warmup + run.blocks
    session, denoise, decode, made = fed(performer, blocks), [], [], []
    with session.apart():
        for _ in range(blocks):
            denoise.append(timed(lambda: made.append(session.denoise_next()), device))
            decode.append(timed(lambda: session.decode_all(made.pop()), device, after=False))
        if run.kernels and device.type == "cuda":
            written(session, Path(run.output) / f"kernels-{name.replace(' ', '-')}.txt")
    unknown = is_fast(performer.config.engine, performer) and device.type == "cuda"
    return denoise, decode, (0, 0) if unknown else counted(session)


def written(session: Session, path: Path) -> None:
    """The kernels of a session's next block, those that take longest first, as text."""
    from torch.profiler import ProfilerActivity, profile

    made: list[Rendering] = []
    acts = {
        "denoising": lambda: made.append(session.denoise_next(fill=True)),
        "decoding": lambda: session.decode_all(made.pop()),
    }
    lines = []
    for name, act in acts.items():
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            act()
            torch.cuda.synchronize()
        kernels = [row for row in found.key_averages() if row.device_type == torch.autograd.DeviceType.CUDA]
        rows = sorted(kernels, key=lambda row: -row.self_device_time_total)[:KERNELS]
        lines += [f"{name}:", *(f"{row.self_device_time_total / 1e3:9.3f} ms {row.count:6d} {row.key}" for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def memory_of(device: torch.device) -> int:
    """Bytes held at most, on a GPU since its peak was reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def counted(session: Session) -> tuple[int, int]:
    """Arithmetic of the denoising and of the decoding of a session's next block."""
    own = {
        torch.ops.aten.mkldnn_convolution: convolution_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=own) as denoising:
        rendering = session.denoise_next(fill=True)
    with FlopCounterMode(display=False, custom_mapping=own) as decoding:
        session.decode_all(rendering)
    return denoising.get_total_flops(), decoding.get_total_flops()


def attention_flops(q: list[int], k: list[int], v: list[int], *_, **__) -> int:
    """Of attention [B, H, S, d] on a CPU, which PyTorch's counter does not know either."""
    return 2 * prod(q[:3]) * k[2] * (q[3] + v[3])


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
    return {
        "device": where,
        "precision": str(performer.dtype).removeprefix("torch."),
        "decoder": "vae" if performer.decoder is performer.vae else "small",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "window": f"{performer.geometry.window} latents",
        "TFLOP/s of a matrix product": limits.flops / 1e12,
        "GB/s of a copy": limits.bandwidth / 1e9,
    }


def dry(run: BenchRun, dtype: torch.dtype) -> str:
    """What the preset takes."""
    if run.preset == "nano":
        return inference.memory(inference_run(run))
    with torch.device("meta"):
        rows = {name: bytes_of(build().parameters(), dtype) for name, build in builds_of(run).items()}
    return memory.table(f"bench: weights of preset {run.preset}, {str(dtype).removeprefix('torch.')}", rows)
