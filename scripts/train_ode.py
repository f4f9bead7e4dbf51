"""The command behind scripts/train_ode.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.train_ode import KEYS, train_ode

    about = "Trains the causal student's start by regression on ODE pairs."
    return run_command("train_ode", about, train_ode, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
