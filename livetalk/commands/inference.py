"""`bash scripts/inference.sh`: one video from a picture, a voice and a text."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from livetalk.cli import Bars
from livetalk.commands.memory import bytes_of, table
from livetalk.config import InferenceRun, flat
from livetalk.devices import device_of, precision_of
from livetalk.families import SMALL, CausalSampler, load_pipeline, parts_of, require_weights
from livetalk.geometry import TIME_STRIDE
from livetalk.media import VideoWriter, check_output
from livetalk.models.small_decoder import SHUFFLE
from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, EXAMPLE_PROMPT, example_prompt, read_request
from livetalk.realtime.livekit_settings import LivekitRun
from livetalk.realtime.server.settings import ServeRun

KEYS = """
image=FILE      a picture of a face: any size, PNG, JPEG, ... (or image_path)
audio=FILE      what it says: WAV, MP3, M4A, FLAC, ... or a video's sound (or audio_path)
prompt=TEXT     how it moves, for example prompt="nods while speaking, smiling"
output=FILE     the video, ends in .mp4; by default outputs/IMAGE_AUDIO_seedN.mp4 (or output_path)
seed=N          the same seed gives the same frames
duration=SEC    shorter than the sound cuts it, longer adds silence (or video_duration)
decoder=vae     the VAE's own decoder, where a family's small one is used otherwise; or decoder=small
sampler=teacher  the bidirectional teacher (50 steps) instead of the causal student (4 steps, block by block)
The defaults render the bundled example.
"""


def infer(run: InferenceRun, dry_run: bool) -> None:
    """Renders the video and prints its path; a dry run prints the memory it would take. Raises ValueError for what the
    user can mend, before anything is loaded."""
    if dry_run:
        print(memory(run))
        return
    image, audio, prompt = inputs_of(run)
    name = f"{Path(image).stem}_{Path(audio).stem}_seed{run.seed}.mp4"
    output = check_output(run.output or Path("outputs") / name)
    for given in (image, audio):
        if Path(given).exists() and output.exists() and output.samefile(given):
            raise ValueError(f"output {output} is the input itself, which would be lost: name another file")
    if output.with_suffix(".json").is_dir():
        raise ValueError(
            f"{output.with_suffix('.json')}, the report beside the video, is a folder: name another output"
        )
    request = read_request(image, audio, prompt, run.seed, run.duration)
    require_weights(run)
    start = time.perf_counter()
    with VideoWriter(output, (run.geometry.height, run.geometry.width), request.audio) as writer, Bars() as bars:
        pipe = load_pipeline(run, bars)
        timings = {"loading": time.perf_counter() - start}
        for frames in pipe.stream(request, bars, timings):
            writer.write(frames)
        timings["total"] = time.perf_counter() - start
        inputs = {"image": image, "audio": audio, "output": str(output)}
        writer.report = {**inputs, **pipe.report(request, timings), "settings": flat(run)}
    print(output)


def inputs_of(run: InferenceRun) -> tuple[str, str, str]:
    """Picture, sound and text of a run, from the bundled example what it does not name. ValueError if that is gone."""
    given = {"image": run.image, "audio": run.audio, "prompt": run.prompt}
    bundled = {"image": EXAMPLE_IMAGE, "audio": EXAMPLE_AUDIO, "prompt": EXAMPLE_PROMPT}
    gone = [key for key, value in given.items() if not value and not bundled[key].is_file()]
    if gone:
        wanted = " ".join(f"{key}=..." for key in gone)
        raise ValueError(f"the bundled example in {EXAMPLE_IMAGE.parent} lacks its {' and '.join(gone)}: give {wanted}")
    return str(run.image or EXAMPLE_IMAGE), str(run.audio or EXAMPLE_AUDIO), run.prompt or example_prompt()


def memory(run: InferenceRun) -> str:
    """What a run would take, as a table; built from modules on the meta device.

    Parameters and the cache are exact. Working memory is an estimate from above: the widest tensors of a transformer
    pass and of a decoder step that are alive together.
    """
    dtype = precision_of(run.precision, device_of(run.device))
    with torch.device("meta"):
        modules = {part.name: part.build() for part in parts_of(run)}
        rows = {name: bytes_of(module.parameters(), dtype) for name, module in modules.items()}
        rows |= _working_bytes(run, modules, dtype)
    size = f"{run.geometry.width}x{run.geometry.height}"
    return table(f"{run.model}, {run.sampler}, {size}, {str(dtype).removeprefix('torch.')}", rows)


def _working_bytes(run: InferenceRun, modules: dict[str, nn.Module], dtype: torch.dtype) -> dict[str, int]:
    geometry, dit = run.geometry, modules["generator"]
    # Channels for each pixel; the small decoder is widest just before its last enlargement, at half the size.
    width = modules[SMALL].config.widths[-1] // SHUFFLE**2 if SMALL in modules else modules["vae"].config.base_dim
    causal = run.sampler == "causal"
    rows = {}
    if causal:
        cache = CausalSampler(dit, geometry, run.causal).new_cache(dtype, "meta")
        rows["key-value cache"] = bytes_of((cache.keys, cache.values))
    latents = geometry.block if causal else geometry.clip_latents
    tokens = latents * geometry.tokens_per_frame
    rows["transformer pass (estimate)"] = tokens * (8 * dit.config.dim + 2 * dit.config.ffn_dim) * dtype.itemsize
    pixels = geometry.block * TIME_STRIDE * geometry.height * geometry.width
    rows["decoder step (estimate)"] = pixels * 6 * width * dtype.itemsize
    return rows


def live_run(run: ServeRun | LivekitRun) -> InferenceRun:
    """The model of a live command, as inference is asked for it."""
    return InferenceRun(
        model=run.model,
        device=run.device,
        precision=run.precision,
        decoder=run.decoder,
        geometry=run.geometry,
        seed=run.seed,
    )
