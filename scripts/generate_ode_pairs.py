"""The command behind scripts/generate_ode_pairs.sh: see --help."""

import sys

from livetalk.cli import nano_or_debug, run_command


def main() -> int:
    from livetalk.commands.generate_ode_pairs import KEYS, generate_ode_pairs

    about = "Writes the teacher's guided trajectories at the student's noise levels."
    return run_command("generate_ode_pairs", about, generate_ode_pairs, help_keys=KEYS, choose=nano_or_debug)


if __name__ == "__main__":
    sys.exit(main())
