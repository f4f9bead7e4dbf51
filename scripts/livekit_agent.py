"""The command behind scripts/livekit_agent.sh: see --help."""

import sys

from livetalk.cli import run_command


def main() -> int:
    from livetalk.commands.livekit_agent import KEYS, livekit_agent

    return run_command("livekit_agent", "Brings an avatar into rooms of LiveKit.", livekit_agent, help_keys=KEYS)


if __name__ == "__main__":
    sys.exit(main())
