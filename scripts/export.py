"""The command behind scripts/export.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.export import KEYS, export

    return run_command("export", "Writes one file of weights from a training's checkpoint.", export, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
