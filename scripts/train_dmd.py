"""The command behind scripts/train_dmd.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.train_dmd import KEYS, train_dmd

    about = "Trains the causal student by distribution matching on its own rollouts."
    return run_command("train_dmd", about, train_dmd, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
