"""Features of prompts: encoded once, remembered in memory and on disk, by an encoder that need not stay on the card."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KEPT = 64
"""Prompts remembered in memory; one of the published size takes four megabytes."""


class Prompts:
    """text: TextEncoder. visits: it is on `device` only while it encodes, else where it is. folder: where features are
    kept from run to run, None for nowhere."""

    def __init__(
        self,
        text: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        visits: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        self.text, self.device, self.dtype, self.visits = text, device, dtype, visits
        self.folder = None if folder is None else Path(folder).expanduser()
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """Features [1, L, text_dim] of a prompt that is not empty, on the device."""
        with self._lock:
            if prompt not in self._known:
                self._known[prompt] = self._found(prompt).to(self.device, self.dtype)
            self._known.move_to_end(prompt)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return self._known[prompt]

    def forget(self) -> None:
        """What is remembered in memory."""
        with self._lock:
            self._known.clear()

    def _found(self, prompt: str) -> Tensor:
        if self.folder is None:
            return self._encoded(prompt)
        path = self.folder / f"{self._name(prompt)}.safetensors"
        if path.is_file():
            return load_file(path)["text"]
        features = self._encoded(prompt)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Complete or not there: other processes may look for it, or write it, meanwhile.
        part = path.with_suffix(f".{os.getpid()}-{uuid4().hex}.part")
        save_file({"text": features.cpu().contiguous()}, part)
        part.replace(path)
        return features

    def _encoded(self, prompt: str) -> Tensor:
        if not self.visits:
            return self.text.encode([prompt])
        self.text.to(self.device)
        try:
            return self.text.encode([prompt])
        finally:
            self.text.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _name(self, prompt: str) -> str:
        """Of a prompt as these weights in this precision see it."""
        seen = hashlib.sha256(prompt.encode())
        for name, value in self.text.named_parameters():
            # A few numbers of each tensor tell one set of weights from another.
            few = value.detach().flatten()[:8].float().cpu().numpy().tobytes()
            seen.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + few)
        return seen.hexdigest()
