"""`bash scripts/inference.sh`: one video from a picture, a voice and a text."""

from __future__ import annotations

import time
from pathlib import Path

from livetalk.cli import Bars
from livetalk.config import InferenceRun, flat
from livetalk.families import load_pipeline, memory_report, require_weights
from livetalk.media import VideoWriter, check_output
from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, example_prompt, read_request

KEYS = """
image=FILE      a picture of a face: any size, PNG, JPEG, ... (or image_path)
audio=FILE      what it says: WAV, MP3, M4A, FLAC, ... or a video's sound (or audio_path)
prompt=TEXT     how it moves, for example prompt="nods while speaking, smiling"
output=FILE     the video, ends in .mp4; by default outputs/IMAGE_AUDIO_seedN.mp4 (or output_path)
seed=N          the same seed gives the same frames
duration=SEC    shorter than the sound cuts it, longer adds silence (or video_duration)
The defaults render the bundled example.
"""


def infer(run: InferenceRun, dry_run: bool) -> None:
    """Renders the video and prints its path; a dry run prints the memory it would take. Raises ValueError for what the
    user can mend, before anything is loaded."""
    if dry_run:
        print(memory_report(run))
        return
    image, audio = run.image or EXAMPLE_IMAGE, run.audio or EXAMPLE_AUDIO
    name = f"{Path(image).stem}_{Path(audio).stem}_seed{run.seed}.mp4"
    output = check_output(run.output or Path("outputs") / name)
    request = read_request(image, audio, run.prompt or example_prompt(), run.seed, run.duration)
    require_weights(run)
    start = time.perf_counter()
    with VideoWriter(output, (run.geometry.height, run.geometry.width), request.audio) as writer, Bars() as bars:
        pipe = load_pipeline(run, bars)
        timings = {"loading": time.perf_counter() - start}
        for frames in pipe.stream(request, bars, timings):
            writer.write(frames)
        timings["total"] = time.perf_counter() - start
        inputs = {"image": str(image), "audio": str(audio), "output": str(output)}
        writer.report = {**inputs, **pipe.report(request, timings), "settings": flat(run)}
    print(output)
