"""The command behind scripts/bench.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.bench import KEYS, bench

    about = "Measures the speed of a live stream on this machine, and where the time goes."
    return run_command("bench", about, bench, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
