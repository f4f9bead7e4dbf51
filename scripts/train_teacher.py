"""The command behind scripts/train_teacher.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.train_teacher import KEYS, train_teacher

    about = "Trains the bidirectional teacher by flow matching."
    return run_command("train_teacher", about, train_teacher, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
