"""The command behind scripts/train_nano.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.train_nano import train_nano

    return run_command("train_nano", "Trains the frozen parts of the nano family: VAE, judges, audio encoder.", train_nano)


if __name__ == "__main__":
    sys.exit(main())
