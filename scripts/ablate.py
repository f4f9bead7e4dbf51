"""The command behind scripts/ablate.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.ablate import KEYS, ablate

    about = "Measures what choices of the recipe are worth, by distillation runs without each of them."
    return run_command("ablate", about, ablate, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
