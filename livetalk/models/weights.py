"""Weights in and out: strictly, or not at all.

Files: one .safetensors, a folder of pieces or shards (*.safetensors), a .pth or .pt. Loading builds nothing twice: the
model is made on the meta device and takes its tensors from the memory-mapped file, cast to the wanted type and device
one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Rename = Callable[[str], tuple[str, ...]]
SHOWN = 12


def tensors_of(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a file or folder of weights, memory-mapped. Raises ValueError if it is none."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path} holds no .safetensors: get the weights with bash scripts/download.sh")
        for file in files:
            yield from tensors_of(file)
    elif not path.is_file():
        raise ValueError(f"no weights at {path}: get them with bash scripts/download.sh")
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except Exception as error:
            raise ValueError(f"{path} is not a whole .safetensors file: download it again ({error})") from error
    else:
        yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()


def load_into(
    model: nn.Module,
    weights: Iterator[tuple[str, Tensor]] | dict[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    rename: Rename = lambda name: (name,),
    ignore: Callable[[str], bool] = lambda name: False,
) -> nn.Module:
    """Fills a model, made on the meta device, with weights; `rename` gives our names of a published one.

    Raises ValueError with every difference by name, expected and found shape.
    """
    wanted = model.state_dict()
    found: dict[str, Tensor] = {}
    differences = []
    for published, tensor in weights.items() if isinstance(weights, dict) else weights:
        if ignore(published):
            continue
        for name in rename(published):
            if name not in wanted:
                differences.append(f"unexpected {published} {list(tensor.shape)}")
            elif wanted[name].shape != tensor.shape:
                differences.append(f"{published}: expected {list(wanted[name].shape)}, found {list(tensor.shape)}")
            else:
                found[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
    missing = [name for name in wanted if name not in found]
    differences += [f"missing {name} {list(wanted[name].shape)}" for name in missing]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise ValueError(f"weights do not fit: {'; '.join(differences[:SHOWN])}{more}")
    model.load_state_dict(found, strict=True, assign=True)
    return model


def save_pieces(folder: str | Path, weights: dict[str, Tensor], limit: int, dtype: torch.dtype) -> list[Path]:
    """Writes weights into folder/weights-NNNNN.safetensors, each at most `limit` bytes of tensors, cast to `dtype`."""
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in weights.items():
        value = value.detach().to(dtype if value.is_floating_point() else value.dtype).contiguous().cpu()
        if size and size + value.nbytes > limit:
            pieces.append({})
            size = 0
        pieces[-1][name] = value
        size += value.nbytes
    paths = [Path(folder) / f"weights-{index:05d}.safetensors" for index in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        save_file(piece, path)
    return paths
