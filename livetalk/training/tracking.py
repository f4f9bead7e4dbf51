"""Figures, pictures and videos of a run, sent to Weights & Biases where that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

log = logging.getLogger(__name__)
MODES = ("off", "offline", "online")
ID = "wandb-id.txt"


class Tracker:
    """Writes to a wandb run, or nowhere (None)."""

    def __init__(self, run: Any = None) -> None:
        self.run = run

    def log(self, step: int, figures: Mapping[str, float], files: Mapping[str, Path] | None = None) -> None:
        """Figures of a step under their names; files: .png pictures and .mp4 videos by name."""
        if self.run is None:
            return
        import wandb

        kinds = {".png": wandb.Image, ".mp4": lambda path: wandb.Video(path, format="mp4")}
        shown = {name: kinds[path.suffix](str(path)) for name, path in (files or {}).items()}
        self.run.log({**figures, **shown}, step=step)

    def finish(self) -> None:
        if self.run is not None:
            self.run.finish()


def start(mode: str, project: str, name: str, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """A tracker for the run in `folder`; a run that goes on is tracked under the id that it began with.

    mode: off, offline (files in folder/wandb, to be sent later) or online. Raises ValueError for another mode, or where
    wandb is wanted and missing.
    """
    if mode not in MODES:
        raise ValueError(f"tracking={mode!r} is not known: use one of {', '.join(MODES)}")
    if mode == "off":
        return Tracker()
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"tracking={mode} needs wandb: pip install wandb, or use tracking=off") from error
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / ID
    if not known.exists():
        known.write_text(uuid4().hex[:12] + "\n", encoding="utf-8")
    identity = known.read_text(encoding="utf-8").strip()
    run = wandb.init(
        project=project,
        name=name,
        id=identity,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=dict(settings),
    )
    return Tracker(run)
