"""The command behind scripts/evaluate.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.evaluate import KEYS, evaluate_family

    about = "Measures a family of weights on a split of the synthetic world."
    return run_command("evaluate", about, evaluate_family, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
