"""Where and in what precision to compute: the keys `device` and `precision` of a run."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device_of(name: str) -> torch.device:
    """ "auto" is the GPU where PyTorch sees one, else the CPU. Raises ValueError for a device that is not there."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if seen else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known: use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ValueError(f"device {name!r}: {seen or 'no'} GPU is seen by PyTorch {torch.__version__}: use device=cpu")
    return device


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU and float32 on a CPU. Raises ValueError for an unknown name."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is not known: use auto, {' or '.join(PRECISIONS)}")
    return PRECISIONS[name]


def settle_gpu() -> None:
    """Where there is a GPU: cuDNN chooses convolutions by measurement, float32 products use TF32, as training is tuned
    for. A CPU keeps its exact products."""
    if not torch.cuda.is_available():
        return
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
