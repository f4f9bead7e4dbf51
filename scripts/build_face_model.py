"""Pack a clone of the public ICT-FaceKit repository into the face model's .npz file (scripts/build_face_model.sh)."""

import argparse
import sys
from pathlib import Path

from livetalk.data.world.build_face_model import build


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 for a mistake in the arguments; the last line printed is the file."""
    parser = argparse.ArgumentParser(description="Pack a clone of ICT-FaceKit into one .npz file.")
    parser.add_argument("clone", type=Path, help="folder of a clone of the public repository ICT-VGL/ICT-FaceKit")
    parser.add_argument("output", type=Path, help="file to write, such as face-model/ict-facekit.npz")
    given = parser.parse_args(arguments)
    try:
        print(build(given.clone, given.output))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
