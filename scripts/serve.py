"""The command behind scripts/serve.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.serve import KEYS, serve

    return run_command("serve", "Serves a page where one talks to an avatar.", serve, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
