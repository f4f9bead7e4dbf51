"""The command behind scripts/make_family.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.make_family import KEYS, make_family

    return run_command(
        "make_family", "Makes a family for training of the published files.", make_family, help_keys=KEYS
    )


if __name__ == "__main__":
    sys.exit(main())
