"""`bash scripts/export.sh`: one .safetensors under published names from a checkpoint of a training, sharded or not."""

from __future__ import annotations

from pathlib import Path

from livetalk.commands.memory import table
from livetalk.models import weights
from livetalk.training.export import ExportRun, entries, found

KEYS = """
checkpoint=FOLDER      a checkpoint, or a run's folder (runs/NAME/dmd), whose newest is taken
module=student         student or critic; dit or text of a teacher's training
averaged=false         the weights as they are instead of their average (EMA)
precision=bfloat16     or float32
layout=published       names of Wan2.1's own files, or those of diffusers
output=FILE            by default outputs/MODULE-STEP.safetensors
"""


def export(run: ExportRun, dry_run: bool = False) -> None:
    """Writes the file; the last line printed is its path."""
    if not run.checkpoint:
        raise ValueError("checkpoint is not set: name one, or a run's folder, such as checkpoint=runs/nano/dmd")
    path = found(run.checkpoint)
    wanted = list(entries(path, run))
    output = Path(run.output) if run.output else Path("outputs") / f"{run.module}-{path.name}.safetensors"
    if dry_run:
        largest = max(entry.nbytes for entry in wanted)
        title = f"export: {len(wanted)} tensors of {path} to {output}, {sum(e.nbytes for e in wanted) / 2**30:.2f} GiB"
        print(table(title, {"the largest tensor": 2 * largest}))
        return
    print(f"export: {len(wanted)} tensors of {path}", flush=True)
    print(weights.save(output, wanted))
