"""Run configs: a YAML file plus `key=value` overrides become one frozen dataclass. The only file that knows OmegaConf.

The key `run:` of a file names its schema in RUNS; every other key must exist in that schema, and a misspelt one is
refused with the nearest known name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from livetalk.data.curation.settings import PrepareRun
from livetalk.data.world.take import WorldConfig
from livetalk.data.world_samples import WorldSamples
from livetalk.evaluation.ablations import AblateRun
from livetalk.evaluation.judges import JudgesConfig
from livetalk.evaluation.objective import ObjectiveConfig
from livetalk.geometry import Geometry
from livetalk.models.audio import AudioConfig
from livetalk.models.dit import DiTConfig
from livetalk.models.kv_cache import POSITIONS
from livetalk.models.small_decoder import SmallDecoderConfig
from livetalk.models.text import TextConfig
from livetalk.models.vae import VAEConfig
from livetalk.realtime.livekit_settings import LivekitRun
from livetalk.realtime.server.settings import ServeRun
from livetalk.streaming.bench import BenchRun
from livetalk.training.audio import AudioTrainingConfig
from livetalk.training.autoencoder import AutoencoderConfig
from livetalk.training.dmd import DmdConfig
from livetalk.training.health import HealthConfig
from livetalk.training.ode import OdeConfig
from livetalk.training.small_decoder import SmallDecoderTraining
from livetalk.training.teacher import FlowMatchingConfig
from livetalk.training.trainer import Learning, TrainConfig

MOST_GUIDANCE = 100.0
DECODERS = ("auto", "vae", "small")
METHODS = ("teacher", "student", "student_ode")
SOURCES = ("teacher", "teacher_causal")
END_SECONDS = 10  # of a long clip's start and end that are compared


@dataclass(frozen=True)
class TeacherSampling:
    """Many-step sampling of a bidirectional model with guidance on text and on audio (flow.guide)."""

    steps: int = 50
    text_scale: float = 2.0
    audio_scale: float = 2.0
    negative_prompt: str = ""
    prefix: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"teacher.steps {self.steps}: at least 1 step is needed")
        for name in ("text_scale", "audio_scale"):
            if not 0 <= getattr(self, name) <= MOST_GUIDANCE:
                raise ValueError(f"teacher.{name} {getattr(self, name)}: choose a number from 0 to {MOST_GUIDANCE:g}")


@dataclass(frozen=True)
class CausalSampling:
    """Few-step block-wise sampling: the timesteps the network is told, largest first, and the cache's positions."""

    timesteps: tuple[float, ...] = (1000.0, 937.5, 2500 / 3, 625.0)
    positions: str = "relative"

    def __post_init__(self) -> None:
        steps = self.timesteps
        if not steps or not all(0 < t <= 1000 for t in steps) or list(steps) != sorted(set(steps), reverse=True):
            raise ValueError(f"causal.timesteps {list(steps)}: give numbers from 1000 down to above 0, largest first")
        if self.positions not in POSITIONS:
            raise ValueError(f"causal.positions {self.positions!r}: choose one of {', '.join(POSITIONS)}")


@dataclass(frozen=True)
class InferenceRun:
    """`scripts/inference.sh`: one video from an image, a voice and a text.

    decoder: what turns latents into pictures: "vae", the VAE's own; "small", the small one of a family; "auto", the
    small one on a CPU, where the family has it.
    """

    run: str = "inference"
    model: str = "nano"
    sampler: str = "causal"
    image: str = ""
    audio: str = ""
    prompt: str = ""
    output: str = ""
    seed: int = 0
    duration: float | None = None
    device: str = "auto"
    precision: str = "auto"
    decoder: str = "auto"
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    teacher: TeacherSampling = TeacherSampling()
    causal: CausalSampling = CausalSampling()


@dataclass(frozen=True)
class NanoRun:
    """`scripts/train_nano.sh`: VAE, small decoder, judges and audio encoder of the nano family, from rendered clips.

    first, last: stages to run; vae_start, small_decoder_start: weights of earlier runs to begin with; workers:
    processes that prepare sound and motion; clips, held_out: clips of the training and dev splits, `frames` frames
    long. frames_from: a folder of rendered clips to train the VAE on, instead of clips rendered for it alone; "own":
    runs/NAME/frames.
    """

    run: str = "train_nano"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    device: str = "auto"
    first: str = "vae"
    last: str = "audio"
    workers: int = 16
    clips: int = 1024
    held_out: int = 128
    frames: int = 81
    frames_from: str = ""
    world: WorldConfig = WorldConfig()
    vae: VAEConfig = VAEConfig(base_dim=16)
    vae_start: str = ""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    vae_train: TrainConfig = TrainConfig()
    decoder_train: TrainConfig = TrainConfig()
    small_decoder: SmallDecoderConfig = SmallDecoderConfig()
    small_decoder_start: str = ""
    small_decoder_training: SmallDecoderTraining = SmallDecoderTraining()
    small_decoder_train: TrainConfig = TrainConfig()
    judges: JudgesConfig = JudgesConfig()
    judges_objective: ObjectiveConfig = ObjectiveConfig()
    judges_frames: int = 32
    judges_train: TrainConfig = TrainConfig()
    audio: AudioConfig = AudioConfig.nano()
    audio_training: AudioTrainingConfig = AudioTrainingConfig()
    audio_train: TrainConfig = TrainConfig()


@dataclass(frozen=True)
class TeacherRun:
    """`scripts/train_teacher.sh`: the teacher and its text encoder, by flow matching.

    family: folder with the frozen parts, into which the teacher is exported; clips of clip_latents latent frames,
    longer than a window of flow.latents, so that windows can continue others. part of parts: with parts > 1 the
    process only renders its part of the clips to runs/NAME/frames, so that several can share the work; a later one
    encodes them. start: a family whose teacher and text encoder the run begins with. With flow.causal the teacher (of
    `start`, else of `family`) becomes one that sees no later blocks, part `teacher_causal`; its text encoder stays
    as it is. tracking: figures to Weights &
    Biases, too (off, offline, online), as one of the runs of `project`.
    """

    run: str = "train_teacher"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    start: str = ""
    device: str = "auto"
    clips: int = 4096
    clip_latents: int = 25
    shard: int = 256
    chunk: int = 32
    part: int = 0
    parts: int = 1
    workers: int = 16
    world: WorldConfig = WorldConfig()
    dit: DiTConfig = DiTConfig.nano()
    text: TextConfig = TextConfig.nano()
    flow: FlowMatchingConfig = FlowMatchingConfig()
    train: TrainConfig = TrainConfig()
    tracking: str = "off"
    project: str = "livetalk"


def _known_source(name: str) -> None:
    if name not in SOURCES:
        raise ValueError(f"source={name}: the parts whose trajectories a student can learn are {' and '.join(SOURCES)}")


@dataclass(frozen=True)
class PairsRun:
    """`scripts/generate_ode_pairs.sh`: trajectories of a family's teacher, to runs/NAME/pairs.

    count, held_out: pairs to train on and to judge by; shard: pairs a file, chunk: pairs a pass. Pictures, sound and
    prompts come from the world; or from a manifest of lines prompt@@image@@audio, the last of which are held out; or,
    to train on, from a folder of encoded clips. steps: of the teacher, visiting each of the student's timesteps. part
    of parts: with parts > 1 the process makes only its part of the shards. source: the part whose trajectories they
    are, teacher or teacher_causal. spoiled: share of the pairs to train on whose picture is blurred or wrongly cropped
    and whose prompt describes no motion (data/spoil.py), to see what curated conditions are worth.
    """

    run: str = "generate_ode_pairs"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    device: str = "auto"
    manifest: str = ""
    clips: str = ""
    count: int = 4096
    held_out: int = 128
    shard: int = 128
    chunk: int = 64
    part: int = 0
    parts: int = 1
    workers: int = 16
    timesteps: tuple[float, ...] = CausalSampling().timesteps
    steps: int = 48
    text_scale: float = 2.0
    audio_scale: float = 2.0
    negative_prompt: str = ""
    seed: int = 0
    spoiled: float = 0.0
    compile: bool = False
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    world: WorldConfig = WorldConfig()

    def __post_init__(self) -> None:
        _known_source(self.source)
        if not 0 <= self.spoiled <= 1:
            raise ValueError(f"spoiled={self.spoiled}: it is a share, give a number from 0 to 1")
        if self.spoiled and (self.manifest or self.clips):
            raise ValueError(
                f"spoiled={self.spoiled}: only pairs of the synthetic world are spoiled, leave manifest= and clips= out"
            )


@dataclass(frozen=True)
class OdeRun:
    """`scripts/train_ode.sh`: the causal student's start, by regression on ODE pairs, exported as part `student`.

    pairs: folder with train/ and dev/, by default runs/NAME/pairs; pairs_config: with which missing pairs are made
    first, a file of configs/ or a path, "" for not at all. chunk: pairs a pass when the student is judged, and `shown`:
    clips it is sampled for then, as `causal` and the cache of `geometry` say. The best checkpoint, which is exported,
    is the one of lowest dev error. source: the part that made the pairs, teacher or teacher_causal, with whose weights
    the student begins. health: when the run warns and stops. tracking: figures, pictures and videos to
    Weights & Biases, too (off, offline, online), as one of the runs of `project`.
    """

    run: str = "train_ode"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    device: str = "auto"
    pairs: str = ""
    pairs_config: str = ""
    chunk: int = 64
    shown: int = 32
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    causal: CausalSampling = CausalSampling()
    ode: OdeConfig = OdeConfig()
    train: TrainConfig = TrainConfig()
    health: HealthConfig = HealthConfig()
    tracking: str = "off"
    project: str = "livetalk"

    def __post_init__(self) -> None:
        _known_source(self.source)


@dataclass(frozen=True)
class DmdRun:
    """`scripts/train_dmd.sh`: the causal student by Self-Forcing distribution matching, exported as part `student`.

    It starts from the ODE student, which is kept as part `student_ode`; teacher and critic start from the teacher.
    pairs, pairs_config, source: as in OdeRun, for their pictures, sound and prompts; ode_config: with which a missing
    ODE student is trained first, "" for not at all. shown: clips the student is sampled for at every checkpoint. train:
    also how the student learns; critic: how the critic does. tracking, project: as in OdeRun.

    The best checkpoint, which is exported, is the one of highest A/V correlation, as the family's judges see it on
    held-out pairs, among those whose motion, contrast, sharpness and identity stay as near to the teacher's as `health`
    says; ties to the later. Pairs without truth: of the mouth most like the teacher's. Without judges: the latest of
    those; if there is none, the latest.
    """

    run: str = "train_dmd"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    device: str = "auto"
    pairs: str = ""
    pairs_config: str = ""
    ode_config: str = ""
    shown: int = 32
    negative_prompt: str = ""
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    causal: CausalSampling = CausalSampling()
    dmd: DmdConfig = DmdConfig()
    train: TrainConfig = TrainConfig()
    critic: Learning = Learning()
    health: HealthConfig = HealthConfig()
    tracking: str = "off"
    project: str = "livetalk"

    def __post_init__(self) -> None:
        _known_source(self.source)


@dataclass(frozen=True)
class EvaluateRun:
    """`scripts/evaluate.sh`: figures of a family on `clips` clips of a split, its generators side by side.

    methods: some of METHODS, none for all that the family has; the teacher is measured at each of `scales`. decoder: of
    all methods, as at inference; the student is shown with the family's other one, too. voice2: clips spoken by the
    world's second engine. timing: seconds for one clip, too. long_clips of long_seconds: what long_methods drift.
    workers: processes that render.
    """

    run: str = "evaluate"
    family: str = "livetalk/assets/nano"
    device: str = "auto"
    split: str = "dev"
    clips: int = 128
    frames: int = 81
    batch: int = 32
    seed: int = 0
    methods: tuple[str, ...] = ()
    steps: int = 50
    scales: tuple[float, ...] = (2.0,)
    negative_prompt: str = ""
    prefix: int = 4
    decoder: str = "auto"
    voice2: int = 0
    timing: bool = False
    long_seconds: int = 0
    long_clips: int = 8
    long_methods: tuple[str, ...] = ("student",)
    workers: int = 8
    output: str = "outputs/evaluation"
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    causal: CausalSampling = CausalSampling()
    world: WorldConfig = WorldConfig()

    def __post_init__(self) -> None:
        for name, chosen in (("methods", self.methods), ("long_methods", self.long_methods)):
            for method in chosen:
                if method not in METHODS:
                    raise ValueError(f"{name}: {method!r} is not known: use some of {', '.join(METHODS)}")
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder {self.decoder!r} is not known: use {' or '.join(DECODERS)}")
        if not self.scales:
            raise ValueError("scales is empty: give at least one, for example scales=[2.0]")
        if self.long_seconds and self.long_seconds < 2 * END_SECONDS:
            raise ValueError(f"long_seconds={self.long_seconds}: give 0, or {2 * END_SECONDS} or more")
        for name, least in (("clips", 2), ("batch", 1), ("steps", 1), ("long_clips", 1), ("voice2", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.voice2 == 1:
            raise ValueError("voice2=1: give 0 or at least 2 clips")


RUNS: dict[str, type] = {
    "inference": InferenceRun,
    "train_nano": NanoRun,
    "train_teacher": TeacherRun,
    "generate_ode_pairs": PairsRun,
    "train_ode": OdeRun,
    "train_dmd": DmdRun,
    "evaluate": EvaluateRun,
    "ablate": AblateRun,
    "bench": BenchRun,
    "serve": ServeRun,
    "livekit_agent": LivekitRun,
    "make_world": WorldSamples,
    "prepare_data": PrepareRun,
}
ALIASES = {"image_path": "image", "audio_path": "audio", "output_path": "output", "video_duration": "duration"}


def load(path: str | Path | None = None, overrides: list[str] | None = None, run: str = "inference") -> Any:
    """Reads a run config.

    path: YAML file, or None for the defaults of schema `run`. overrides: `key=value` with dots for nested keys.
    Values are literal: nothing is interpolated. Raises ValueError, in one line with a remedy, for anything that is not
    a valid config.
    """
    from omegaconf import OmegaConf

    data = _read_yaml(path) if path is not None else {}
    name = data.get("run", run)
    if not isinstance(name, str) or name not in RUNS:
        raise ValueError(f"{path or 'config'}: run: {name!r} is not known{_hint(str(name), RUNS)}")
    schema, where = RUNS[name], f"{path}: "
    merged = OmegaConf.structured(schema)
    for key, value in data.items():
        known = ALIASES.get(key, key)
        if known != key and known in data:
            raise ValueError(f"{where}{key!r} and {known!r} are the same key: keep one")
        merged = _refusing(OmegaConf.merge, merged, _checked({known: value}, schema, where), where=where)
    for item in overrides or []:
        merged = _refusing(OmegaConf.merge, merged, _checked(_override(item, schema), schema, ""), where="")
    return _refusing(OmegaConf.to_object, merged, where="")


def _refusing(act: Callable, *arguments: Any, where: str) -> Any:
    """act(*arguments), with what OmegaConf refuses as a ValueError of one line that names the key."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return act(*arguments)
    except OmegaConfBaseException as error:
        # Of the elements of a list neither key nor value is known here, and the message is an unfilled template.
        change = arguments[-1]
        reason = str(error).splitlines()[0].replace("'$VALUE' of type '$VALUE_TYPE'", f"in {change}")
        raise ValueError(f"{where}{error.full_key or ', '.join(map(str, change))}: {reason}") from error


def _read_yaml(path: str | Path) -> dict:
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config {path} is not a file: name one of configs/*.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise ValueError(f"config {path} is empty or not a mapping: it needs at least `run: NAME`")
    return data


def _override(item: str, schema: type) -> dict:
    """`a.b=value` as the nested mapping it stands for. Texts stay as typed: YAML would turn `off` into False."""
    import yaml

    key, equals, text = item.partition("=")
    key = ALIASES.get(key.strip(), key.strip())
    if not equals or not key:
        raise ValueError(f"argument {item!r} is not key=value: write for example seed=1")
    if key == "run":
        raise ValueError(f"argument {item!r}: the script or the config file says what to run")
    if _leaf_type(key, schema) is str:
        value: Any = text
    else:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{key}={text!r} cannot be read: {str(error).splitlines()[0]}") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _checked(data: dict, schema: type, where: str) -> dict:
    """`data` with every key known to `schema`, every text a text, and nothing that OmegaConf would interpolate."""
    types = get_type_hints(schema)
    out = {}
    for key, value in data.items():
        if key not in types:
            raise ValueError(f"{where}unknown key {key!r}{_hint(str(key), types)}")
        if is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}{key}: {value!r} is not a mapping of {', '.join(get_type_hints(types[key]))}")
            out[key] = _checked(value, types[key], f"{where}{key}: ")
        elif types[key] is str and not isinstance(value, str):
            raise ValueError(f"{where}{key}: {value!r} is not text: put it in quotes")
        else:
            out[key] = _literal(value, f"{where}{key}")
    return out


def _literal(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_literal(item, where) for item in value]
    if value == "???":
        raise ValueError(f"{where}: '???' is not a value: write something else")
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _leaf_type(path: str, schema: type) -> Any:
    head, _, rest = path.partition(".")
    types = get_type_hints(schema)
    if head not in types:
        raise ValueError(f"unknown key {head!r}{_hint(head, {*types, *ALIASES})}")
    if not rest:
        return types[head]
    if not is_dataclass(types[head]):
        raise ValueError(f"key {path!r}: {head!r} has no parts")
    return _leaf_type(rest, types[head])


def _hint(word: str, known: Any) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f": known are {', '.join(sorted(known))}"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config under its dotted name, for logs and JSON."""
    out: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        name = prefix + entry.name
        out.update(flat(value, name + ".") if is_dataclass(value) else {name: value})
    return out
