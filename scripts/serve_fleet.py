"""The command behind scripts/serve_fleet.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.serve_fleet import KEYS, serve_fleet

    return run_command(
        "serve_fleet", "Serves the page from several GPUs behind one address.", serve_fleet, help_keys=KEYS
    )


if __name__ == "__main__":
    sys.exit(main())
