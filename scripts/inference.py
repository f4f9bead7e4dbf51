"""The command behind scripts/inference.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.inference import KEYS, infer

    return run_command("inference", "Renders a talking video from a picture and a voice.", infer, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
