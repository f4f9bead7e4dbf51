"""One network of a model on disk, read and written: strictly, and whole or not at all.

A family is a folder with one folder a part: family/PART/ holds config.json, weights in pieces, and card.json, which
says where the weights come from. livetalk/families.py puts parts together.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from livetalk.models import audio, text
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import SIZES, DiTConfig, WanDiT
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig
from livetalk.models.text import TextConfig, TextEncoder, Tokenize, file_tokenizer
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.weights import Rename, load_into, save_pieces, tensors_of

C = TypeVar("C")
CONFIG, CARD, TOKENIZER = "config.json", "card.json", "tokenizer.json"
PIECE_BYTES, LARGE_PIECE_BYTES = 15 * 2**20, 4 * 2**30
"""Of a file of weights: small enough to be in a repository, or what large networks are cut into."""

KINDS: dict[str, tuple[Callable[[Any], nn.Module], type]] = {
    "vae": (WanVAE, VAEConfig),
    "small_decoder": (SmallDecoder, SmallDecoderConfig),
    "audio": (AudioEncoder, AudioConfig),
    "text": (TextEncoder, TextConfig),
    "teacher": (WanDiT, DiTConfig),
    "teacher_causal": (WanDiT, DiTConfig),
    "score": (WanDiT, DiTConfig),
    "student": (WanDiT, DiTConfig),
    "student_ode": (WanDiT, DiTConfig),
}
MADE_BY = {
    "vae": "train_nano",
    "small_decoder": "train_nano",
    "audio": "train_nano",
    "judges": "train_nano",
    "text": "train_teacher",
    "teacher": "train_teacher",
    "teacher_causal": "train_teacher",
    "student": "train_ode",
    "student_ode": "train_ode",
    "score": "make_family",
}


def same_name(name: str) -> tuple[str, ...]:
    return (name,)


def audio_name(theirs: str) -> tuple[str, ...]:
    """Our name for one of a published wav2vec2, none for what the encoder does not need."""
    return tuple(audio.published_names([theirs]))


def text_name(theirs: str) -> tuple[str, ...]:
    """Our name for one of a published UMT5."""
    return tuple(text.published_names([theirs]))


@dataclass(frozen=True)
class Part:
    """One network of a model: how to build it, where its weights lie, and our names for theirs."""

    name: str
    build: Callable[[], nn.Module]
    source: Path
    rename: Rename = same_name
    tokenizer: Path | None = None
    read_tokenizer: Callable[[Path], Tokenize] = file_tokenizer

    @property
    def paths(self) -> list[Path]:
        """The files and folders that it is read from."""
        return [self.source] if self.tokenizer is None else [self.source, self.tokenizer]

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network with its weights, frozen. Raises ValueError for weights that are missing or do not fit."""
        with torch.device("meta"):
            module = self.build()
        try:
            load_into(module, tensors_of(self.source), dtype=dtype, device=device, rename=self.rename)
        except ValueError as error:
            raise ValueError(f"{self.name} weights in {self.source}: {error}") from error
        if isinstance(module, WanVAE):
            module.set_statistics()
        if self.tokenizer is not None:
            module.tokenizer = self.read_tokenizer(self.tokenizer)
        return module.eval().requires_grad_(False)


# A part of a family


def missing_parts(family: str | Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (Path(family) / name / CONFIG).is_file()]


def require_parts(family: str | Path, names: Iterable[str]) -> None:
    """Raises ValueError, naming the commands that make them, unless a family has all of `names`."""
    missing = missing_parts(family, names)
    if missing:
        makers = dict.fromkeys(f"bash scripts/{MADE_BY[name]}.sh" for name in missing if name in MADE_BY)
        remedy = f"make them with {' and '.join(makers)}" if makers else "name a family that has them"
        raise ValueError(f"no weights for {', '.join(missing)} in {family}: {remedy}")


def family_part(family: str | Path, name: str) -> Part:
    """Part `name`, one of KINDS, of a family. Raises ValueError if it is missing or of another kind."""
    require_parts(family, [name])
    folder = Path(family) / name
    kind, config = KINDS[name]
    sizes = read_config(folder, config)
    if name == "text":
        return Part(name, partial(kind, sizes), folder, rename=text_name, tokenizer=folder / TOKENIZER)
    return Part(name, partial(kind, sizes), folder)


def load_part(
    family: str | Path, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """The network of part `name` of a family, frozen. Raises ValueError as family_part and Part.load do."""
    return family_part(family, name).load(device, dtype)


def sized(family: str | Path, name: str, size: str) -> DiTConfig:
    """The sizes of a transformer of a family; where it has none yet, those that `size`, one of dit.SIZES, stands for
    ("": nano). Raises ValueError if the family's is of another size, or `size` is not known."""
    if size and size not in SIZES:
        raise ValueError(f"size {size!r} is not known: use {', '.join(SIZES)}, or leave it out")
    if missing_parts(family, [name]):
        return SIZES[size or "nano"]()
    found = read_config(Path(family) / name, DiTConfig)
    if size and found != SIZES[size]():
        raise ValueError(f"{Path(family) / name} has width {found.dim} and {found.layers} layers, not the size {size}")
    return found


def read_config(folder: str | Path, kind: type[C]) -> C:
    """The frozen config of a part. Raises ValueError if it is missing, broken or of another kind."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{path} not found: the folder of a part holds {CONFIG} and *.safetensors")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): export the part again") from error
    known = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or set(data) != known:
        found = sorted(set(data) ^ known) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} does not describe a {kind.__name__}: differing keys {found}")
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# Export


@dataclass(frozen=True)
class Card:
    """Where weights come from: the world's seed, steps, every setting of the run, figures on held-out clips."""

    data_seed: int
    steps: int
    figures: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def piece_bytes(weights: dict[str, Tensor]) -> int:
    """How long a file of these weights may be."""
    largest = max(value.numel() for value in weights.values()) * torch.float32.itemsize
    return PIECE_BYTES if 2 * largest <= PIECE_BYTES else LARGE_PIECE_BYTES


def export_part(
    family: str | Path,
    name: str,
    config: Any,
    weights: dict[str, Tensor],
    card: Card,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Writes family/name/: config.json, card.json and weights in pieces; replaces what was there when whole.

    A tokenizer of the part stays.
    """
    final = Path(family) / name
    fresh = final.with_name(f".{name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    card_text = json.dumps(asdict(card), indent=1, default=str, ensure_ascii=False)
    (fresh / CARD).write_text(card_text + "\n", encoding="utf-8")
    save_pieces(fresh, weights, piece_bytes(weights), dtype)
    if (final / TOKENIZER).exists():
        shutil.copy(final / TOKENIZER, fresh)
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    return final


def card_of(part: Path) -> dict[str, Any]:
    """What the card of a part's folder says, {} where there is none."""
    return json.loads((part / CARD).read_text(encoding="utf-8")) if (part / CARD).is_file() else {}


def lean_part(
    family: str | Path,
    name: str,
    towards: str,
    share: float,
    figures: dict[str, float],
    since: str | None = None,
) -> Path:
    """Exports a part once more, its weights moved by `share` towards those of another: the part it was trained from,
    since a middle is often better than either end (Wortsman et al., arXiv:2109.01903); or, with `since`, an earlier
    state of `towards`, by `share` of what that has learnt from there on, nothing of its own being taken back (Ilharco
    et al., arXiv:2212.04089). Moved twice, it goes on from there; its card says how much of whose is in it.

    towards, since: parts of this family, or of another: FAMILY/PART. figures: what was measured of it, for its card.
    Raises ValueError for a share that is none, no part, another network, or a part without a card.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: give a share from 0, as it is, to 1, the part it is moved to")
    if name not in KINDS:
        raise ValueError(f"{name}: what leans is a part of the family: {', '.join(KINDS)}")
    part = load_part(family, name)
    states = {}
    for named in filter(None, (towards, since)):
        other = _part_named(family, named)
        if other.config != part.config:
            whose = named if "/" in named else f"{named} of {family}"
            raise ValueError(
                f"{whose} is another network than {name}: name the part it was trained from, or a state of it"
            )
        states[named] = {key: value.float() for key, value in other.state_dict().items()}
    own, end = {key: value.float() for key, value in part.state_dict().items()}, states[towards]
    if since:
        end = {key: value + end[key] - states[since][key] for key, value in own.items()}
    weights = {key: torch.lerp(value, end[key], share) for key, value in own.items()}
    if not (card := card_of(Path(family) / name)):
        raise ValueError(f"{name} of {family} has no {CARD}, which leaning adds to: give a part that was trained here")
    kept, whose = (1.0, f"{towards} since {since}") if since else (1 - share, towards)
    leans = {before: kept * held for before, held in card["settings"].get("leans", {}).items()}
    leans[whose] = leans.get(whose, 0.0) + share
    settings = card["settings"] | {"leans": leans}
    return export_part(family, name, part.config, weights, Card(card["data_seed"], card["steps"], figures, settings))


def _part_named(family: str | Path, name: str) -> nn.Module:
    """A part of the family, or of another: FAMILY/PART."""
    folder = Path(name) if "/" in name else Path(family, name)
    if folder.name not in KINDS:
        raise ValueError(f"{name}: a part is {', '.join(KINDS)}, or one of another family, as FAMILY/teacher")
    return load_part(folder.parent, folder.name)
