"""The command behind scripts/train_nano.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.train_nano import KEYS, train_nano

    about = "Trains the frozen parts of the nano family: VAE, judges, audio encoder."
    return run_command("train_nano", about, train_nano, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
