"""Pack a clone of the public ICT-FaceKit repository into the face model's .npz file (scripts/build_face_model.sh)."""

import sys
from pathlib import Path

from livetalk.cli import Parser, place_of
from livetalk.data.world.build_face_model import build


def main() -> int:
    """Exit status: 0, or 2 for a mistake in the arguments; the last line printed is the file."""
    parser = Parser(prog="scripts/build_face_model.sh", description="Pack a clone of ICT-FaceKit into one .npz file.")
    parser.add_argument("clone", type=Path, help="folder of a clone of the public repository ICT-VGL/ICT-FaceKit")
    parser.add_argument("output", type=Path, help="file to write, such as face-model/ict-facekit.npz")
    try:
        given = parser.parse_args()
        print(build(given.clone, given.output))
    except ValueError as error:
        print(f"build_face_model: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"build_face_model: {place_of(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
