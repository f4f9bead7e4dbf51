"""What frozen encoders make of texts and sounds, kept on disk by content: a large encoder need not be in memory.

A feature lies under the hash of its text or sound, below that of the encoder's files: another encoder, or another text,
is another file. Files are whole or not there, so that many processes may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from livetalk.checks import made_folder
from livetalk.data.encoded import write_whole

log = logging.getLogger(__name__)
CHUNK = 2**24


def identity_of(*paths: str | Path) -> str:
    """A hash of every byte of files, and of those in folders: tells encoders apart without loading them."""
    digest = hashlib.sha256()
    for file in _files(map(Path, paths)):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as source:
            while piece := source.read(CHUNK):
                digest.update(piece)
    return digest.hexdigest()[:16]


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is not there: name the file or folder of an encoder")
        yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


class FeatureCache:
    """Features of one encoder, by the bytes that they were made of.

    Rows of zeros at the end, such as the padding of a text, are not stored. Raises ValueError for a folder that is not
    there and cannot be made; one that can only be read will do while nothing is missing.
    """

    def __init__(self, folder: str | Path, identity: str) -> None:
        self.folder = made_folder("features", folder, written=False) / identity

    def path(self, content: bytes) -> Path:
        name = hashlib.sha256(content).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, contents: Sequence[bytes]) -> list[int]:
        """Indices of contents without features, each content once."""
        first = {content: index for index, content in reversed(list(enumerate(contents)))}
        return sorted(index for content, index in first.items() if not self.path(content).is_file())

    def keep(self, content: bytes, features: Tensor) -> None:
        """Stores features [L, D]."""
        path = self.path(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        used = features.any(dim=1).nonzero()
        rows = int(used.max()) + 1 if len(used) else 0
        kept = {"features": features[:rows].detach().cpu().contiguous(), "rows": torch.tensor(len(features))}
        write_whole(path, lambda to: save_file(kept, to))

    def read(self, content: bytes) -> Tensor:
        """Features [L, D] on the CPU. Raises ValueError, naming the file, if it cannot be read."""
        path = self.path(content)
        try:
            kept = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it, and it is made again") from error
        missing = int(kept["rows"]) - len(kept["features"])
        return torch.nn.functional.pad(kept["features"], (0, 0, 0, missing))

    def noted(self, name: str, make: Callable[[], str]) -> str:
        """A short text that depends on the encoder alone, made once."""
        path = self.folder / f"{name}.txt"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            found = make()
            write_whole(path, lambda to: to.write_text(found, encoding="utf-8"))
        return path.read_text(encoding="utf-8")
