"""The command behind scripts/evaluate.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.evaluate import evaluate_family

    return run_command("evaluate", "Measures a family of weights on a split of the synthetic world.", evaluate_family)


if __name__ == "__main__":
    sys.exit(main())
