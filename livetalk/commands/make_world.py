"""`bash scripts/make_world.sh`: sample clips of the synthetic world, to look at and to listen to."""

from __future__ import annotations

from livetalk.commands.memory import table
from livetalk.data.world_samples import WorldSamples, write_samples

KEYS = """
split=NAME             train, dev, test or test-voice2 (test spoken by the second engine)
clips=N start=N        how many clips, from which index
frames=N               length of a clip at 16 frames a second
output=FOLDER          where videos and contact sheets go
world.face_model=FILE  a packed ICT-FaceKit head; "tiny" is the head made in code
world.engine=NAME      espeak, flite, or tone (needs nothing)
"""


def make_world(run: WorldSamples, dry_run: bool = False) -> None:
    """Writes the samples; the last line printed is the contact sheet of all clips."""
    if dry_run:
        drawn = run.frames * (run.world.size * run.world.supersample) ** 2 * 3
        title = f"make_world: {run.clips} clips of {run.frames} frames to {run.output}, one at a time"
        print(table(title, {"frames of a clip": run.frames * run.world.size**2 * 3, "drawing (estimate)": 4 * drawn}))
        return
    print(write_samples(run))
