"""Weights in and out: strictly, or not at all.

Files: one .safetensors; a folder of pieces or shards (*.safetensors, with or without an index), or the index; a .pth
or .pt. Loading builds nothing twice: the model is made on the meta device and takes its tensors from the memory-mapped
file, cast to the wanted type and device one by one. Saving is atomic: a file is whole, or it is not there.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Rename = Callable[[str], tuple[str, ...]]
"""The names of ours that a name of a file fills: usually one."""

INDEX = ".safetensors.index.json"
DOWNLOAD = "get the weights with bash scripts/download.sh"
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES = FLOATS | {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


# Reading


def tensors_of(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a file or folder of weights, memory-mapped: nothing is read before it is used.

    Raises ValueError, naming the file and the remedy, for what is missing, cut off or not weights.
    """
    for file in files_of(path):
        yield from _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def files_of(path: str | Path) -> list[Path]:
    """The files that weights at `path` consist of, all present. Raises ValueError as `tensors_of` does."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no weights at {path}: {DOWNLOAD}")
    if path.is_file():
        return _indexed(path) if path.name.endswith(INDEX) else [path]
    indices = sorted(path.glob(f"*{INDEX}"))
    if len(indices) == 1:
        files = _indexed(indices[0])
    else:
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{path} holds no .safetensors: {DOWNLOAD}")
    return files


def _indexed(index: Path) -> list[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index} is not an index of weights: {DOWNLOAD}") from error
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}: {DOWNLOAD}")
    return [index.parent / name for name in shards]


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = [(name, file.get_tensor(name)) for name in file.keys()]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole .safetensors file ({error}): delete it and {DOWNLOAD}") from error
    yield from tensors


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files from before PyTorch 1.6 are no archives, and cannot be mapped.
        found = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole file of weights ({reason}): delete it and {DOWNLOAD}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds something else than named tensors: {DOWNLOAD}")
    yield from found.items()


# Loading


def load_into(
    model: nn.Module,
    weights: Iterable[tuple[str, Tensor]] | dict[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rename: Rename = lambda name: (name,),
    ignore: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Fills a model, made on the meta device, with weights; `rename` gives our names of a published one.

    A name that `rename` maps to nothing, or that `ignore` accepts, is left out on purpose. Raises ValueError with every
    difference by name, expected and found shape and type, before anything is changed.
    """
    pairs = weights.items() if isinstance(weights, dict) else weights
    found = {ours: (name, value) for name, value in pairs if not ignore(name) for ours in rename(name)}
    wanted = model.state_dict()
    differences = list(_differences(wanted, found))
    if differences:
        raise ValueError(f"{len(differences)} weights do not fit: {'; '.join(differences)}")
    cast = {name: value.to(device=device, dtype=_target(wanted[name], dtype)) for name, (_, value) in found.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model


def _differences(wanted: dict[str, Tensor], found: dict[str, tuple[str, Tensor]]) -> Iterator[str]:
    for name, value in wanted.items():
        if name not in found:
            yield f"missing {name} {list(value.shape)}"
    for name, (theirs, value) in found.items():
        label = theirs if theirs == name else f"{theirs} (our {name})"
        if name not in wanted:
            yield f"unexpected {theirs} {list(value.shape)}"
        elif wanted[name].shape != value.shape:
            yield f"{label}: expected {list(wanted[name].shape)}, found {list(value.shape)}"
        elif wanted[name].is_floating_point() and value.dtype not in FLOATS:
            yield f"{label}: expected floating point, found {str(value.dtype).removeprefix('torch.')}"


def _target(wanted: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if wanted.is_floating_point() else wanted.dtype


# Saving


@dataclass(frozen=True)
class Entry:
    """One tensor to be written: its value is asked for when its turn comes, so that one at a time is in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def entries_of(weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> list[Entry]:
    """Weights as entries; floating point ones are cast to `dtype` as they are written."""
    return [
        Entry(name, tuple(value.shape), value.dtype if dtype is None else _target(value, dtype), value.detach)
        for name, value in weights.items()
    ]


def save(path: str | Path, entries: Iterable[Entry]) -> Path:
    """Writes one .safetensors file, tensor by tensor: under a temporary name first, moved into place when whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Wider types first keep every tensor aligned for memory-mapping.
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(_header(ordered))
            for entry in ordered:
                value = entry.value().to(device="cpu", dtype=entry.dtype).contiguous()
                assert tuple(value.shape) == entry.shape, entry.name
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _header(entries: list[Entry]) -> bytes:
    """The head of a .safetensors file: its length in 8 bytes, then names, types, shapes and offsets as JSON."""
    head: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        assert entry.name not in head, entry.name
        offsets = [start, start + entry.nbytes]
        head[entry.name] = {"dtype": TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_pieces(folder: str | Path, weights: dict[str, Tensor], limit: int, dtype: torch.dtype) -> list[Path]:
    """Writes weights into folder/weights-NNNNN.safetensors, cast to `dtype`; no file is longer than `limit` bytes.

    Pieces of an earlier save that had more of them are removed. Raises ValueError for a tensor that no piece can hold.
    """
    folder = Path(folder)
    pieces: list[list[Entry]] = [[]]
    for entry in entries_of(weights, dtype):
        if _file_bytes([entry]) > limit:
            raise ValueError(f"{entry.name} {list(entry.shape)} takes {entry.nbytes} bytes, a piece holds {limit}")
        if pieces[-1] and _file_bytes([*pieces[-1], entry]) > limit:
            pieces.append([])
        pieces[-1].append(entry)
    paths = [save(folder / f"weights-{index:05d}.safetensors", piece) for index, piece in enumerate(pieces)]
    for stale in set(folder.glob("weights-*.safetensors")) - set(paths):
        stale.unlink()
    return paths


def _file_bytes(entries: list[Entry]) -> int:
    return len(_header(entries)) + sum(entry.nbytes for entry in entries)
