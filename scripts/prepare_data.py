"""The command behind scripts/prepare_data.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.prepare_data import KEYS, prepare_data

    about = "Makes clips to train on out of a folder of videos: bash scripts/prepare_data.sh FOLDER [key=value ...]"
    return run_command("prepare_data", about, prepare_data, help_keys=KEYS, bare="folder")


if __name__ == "__main__":
    sys.exit(main())
