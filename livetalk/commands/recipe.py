"""What `bash scripts/reproduce_nano.sh` asks before it begins: which configs this machine runs, and whether every stage
takes the settings it is given."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from livetalk.cli import CONFIGS
from livetalk.config import load

COMMANDS = ("train_nano", "train_teacher", "generate_ode_pairs", "train_ode", "train_dmd", "evaluate")
"""The commands of the stages."""


def kind_of(settings: Sequence[str]) -> str:
    """How the names of this machine's configs end: in nothing with a GPU, else in _debug. Raises ValueError, naming the
    command, for settings that are not for all."""
    kind = "" if torch.cuda.is_available() else "_debug"
    for name in COMMANDS:
        try:
            load(CONFIGS / f"{name}{kind}.yaml", list(settings))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return kind


if __name__ == "__main__":
    try:
        print(kind_of(sys.argv[1:]))
    except ValueError as mistake:
        print(f"reproduce_nano: {mistake}", file=sys.stderr)
        sys.exit(2)
