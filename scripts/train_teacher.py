"""The command behind scripts/train_teacher.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.train_teacher import train_teacher

    return run_command("train_teacher", "Trains the bidirectional teacher by flow matching.", train_teacher)


if __name__ == "__main__":
    sys.exit(main())
