"""The command behind scripts/make_world.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.make_world import KEYS, make_world

    return run_command("make_world", "Writes sample clips of the synthetic world.", make_world, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
