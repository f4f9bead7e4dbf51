"""The command behind scripts/inference.sh: see --help."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from livetalk.cli import Bars, run_command
from livetalk.config import InferenceRun, flat

KEYS = """
image=FILE      a picture of a face: any size, PNG, JPEG, ... (image_path)
audio=FILE      what it says: WAV, MP3, M4A, FLAC, ... or a video's sound (audio_path)
prompt=TEXT     how it moves, for example prompt="nods while speaking, smiling"
output=FILE     the video, ends in .mp4; default outputs/IMAGE_AUDIO_seedN.mp4 (output_path)
seed=N          the same seed gives the same frames
duration=SEC    shorter than the sound cuts it, longer adds silence (video_duration)
The defaults render the bundled example.
"""


def infer(config: InferenceRun, dry_run: bool) -> None:
    from livetalk.families import dry_run_report, load_pipeline, require_weights

    if dry_run:
        print(dry_run_report(config))
        return
    from livetalk.media import VideoWriter, check_output
    from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE, example_prompt, read_request

    image, audio = config.image or EXAMPLE_IMAGE, config.audio or EXAMPLE_AUDIO
    name = f"{Path(image).stem}_{Path(audio).stem}_seed{config.seed}.mp4"
    output = check_output(config.output or Path("outputs") / name)
    request = read_request(image, audio, config.prompt or example_prompt(), config.seed, config.duration)
    require_weights(config)
    start = time.perf_counter()
    size = (config.geometry.height, config.geometry.width)
    with VideoWriter(output, size, request.audio) as writer, Bars() as bars:
        pipe = load_pipeline(config, bars)
        timings = {"loading": time.perf_counter() - start}
        for frames in pipe.stream(request, bars, timings):
            writer.write(frames)
        timings["total"] = time.perf_counter() - start
        inputs = {"image": str(image), "audio": str(audio), "output": str(output)}
        writer.report = {**inputs, **pipe.report(request, timings), "settings": flat(config)}
    print(output)


if __name__ == "__main__":
    sys.exit(run_command("inference", "Renders a talking video from a picture and a voice.", infer, help_keys=KEYS))
