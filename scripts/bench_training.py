"""The command behind scripts/bench_training.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.bench_training import KEYS, bench_training

    about = "Times training steps of the published sizes, with random weights."
    return run_command("bench_training", about, bench_training, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
