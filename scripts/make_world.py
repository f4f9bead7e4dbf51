"""The command behind scripts/make_world.sh: see --help."""

import sys

from livetalk import config
from livetalk.cli import run_command

KEYS = """
split=NAME             train, dev, test or test-voice2 (test spoken by the second engine)
clips=N start=N        how many clips, from which index
frames=N               length of a clip at 16 frames a second
output=FOLDER          where videos and contact sheets go
world.face_model=FILE  a packed ICT-FaceKit head; "tiny" is the head made in code
world.engine=NAME      espeak, flite, or tone (needs nothing)
"""


def main() -> int:
    from livetalk.data.world_samples import WorldSamples, write_samples

    def act(settings: WorldSamples, dry_run: bool) -> None:
        if dry_run:
            print(f"would write {settings.clips} clips of {settings.frames} frames to {settings.output}")
        else:
            print(write_samples(settings))

    config.RUNS["make_world"] = WorldSamples
    return run_command("make_world", "Writes sample clips of the synthetic world.", act, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
