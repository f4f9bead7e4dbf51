"""Run configs: the dataclass that each command takes, composed of those that lie beside components.

The key `run:` of a file names its schema in RUNS; every other key must exist in that schema, and a misspelt one is
refused with the nearest known name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livetalk.checks import MOST_GUIDANCE, at_least, known_name, known_order, known_part, shares
from livetalk.data.curation.settings import PrepareRun
from livetalk.data.world.take import WorldConfig
from livetalk.data.world_samples import WorldSamples
from livetalk.evaluation.ablations import AblateRun
from livetalk.evaluation.judges import JudgesConfig
from livetalk.evaluation.objective import ObjectiveConfig
from livetalk.flow import Guided, SkipLayer
from livetalk.geometry import Geometry
from livetalk.models.audio import AudioConfig
from livetalk.models.dit import DiTConfig
from livetalk.models.kv_cache import POSITIONS
from livetalk.models.lora import LoraTraining
from livetalk.models.small_decoder import SmallDecoderConfig
from livetalk.models.text import TextConfig
from livetalk.models.vae import VAEConfig
from livetalk.realtime.livekit_settings import LivekitRun
from livetalk.realtime.server.fleet.settings import FleetRun
from livetalk.realtime.server.settings import ServeRun
from livetalk.schemas import flat as flat
from livetalk.schemas import read
from livetalk.schemas import run_of as run_of
from livetalk.streaming.bench import BenchRun
from livetalk.training.audio import AudioTrainingConfig
from livetalk.training.autoencoder import AutoencoderConfig
from livetalk.training.bench import BenchTrainingRun
from livetalk.training.dmd import DmdConfig
from livetalk.training.export import ExportRun
from livetalk.training.health import HealthConfig
from livetalk.training.ode import OdeConfig
from livetalk.training.small_decoder import SmallDecoderTraining
from livetalk.training.teacher import FlowMatchingConfig
from livetalk.training.trainer import Learning, TrainConfig

DECODERS = ("auto", "vae", "small")
METHODS = ("teacher", "student", "student_ode")
SOURCES = ("teacher", "teacher_causal")
SCORES = ("teacher", "score")
SIZES_PUBLISHED = ("1.3b", "14b")
END_SECONDS = 10  # of a long clip's start and end that are compared


@dataclass(frozen=True)
class TeacherSampling(Guided):
    """Many-step sampling of a bidirectional model under guidance. order: as sample."""

    steps: int = 50
    text_scale: float = 1.5
    audio_scale: float = 1.5
    negative_prompt: str = ""
    prefix: int = 4
    order: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"teacher.steps {self.steps}: at least 1 step is needed")
        known_order(self.order, "teacher.")
        self.check_guidance("teacher.")


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

    first, last: stages to run; vae_start, small_decoder_start, audio_start: weights of earlier runs to begin with (the
    audio encoder keeps what it says of undisturbed sound, on which a teacher may rest); workers: processes that prepare
    sound and motion; clips, held_out: clips of the training and dev splits, `frames` frames long. audio_engines: speech
    engines that the audio encoder hears beside the world's own, audio_others clips of each. frames_from: a folder of
    rendered clips to train the VAE on, instead of clips rendered for it alone; "own": runs/NAME/frames.
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
    audio_start: str = ""
    audio_engines: tuple[str, ...] = ()
    audio_others: int = 300
    audio_training: AudioTrainingConfig = AudioTrainingConfig()
    audio_train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        known_name(self.name)
        at_least(1, self, "clips", "held_out", "frames", "judges_frames", "audio_others")
        at_least(0, self, "workers")
        for name in ("vae_train", "decoder_train", "small_decoder_train", "judges_train", "audio_train"):
            if getattr(self, name).shard:
                raise ValueError(f"{name}.shard=true: these networks are small, leave it out")


@dataclass(frozen=True)
class TeacherRun:
    """`scripts/train_teacher.sh`: the teacher and its text encoder, by flow matching.

    family: folder with the frozen parts, into which the teacher is exported; clips of clip_latents latent frames,
    longer than a window of flow.latents, so that windows can continue others. part of parts: with parts > 1 the process
    only renders its part of the clips to runs/NAME/frames, so that several can share the work; a later one encodes
    them. With keep_frames=false pictures are encoded as they are rendered, in parts too, and not kept. start: a family
    whose teacher and text encoder the run begins with. With flow.causal the teacher (of `start`, else of `family`)
    becomes one that sees no later blocks, part `teacher_causal`; its text encoder stays as it is. With lora.rank that
    teacher learns adapters of its layers alone, from prepared clips; its text encoder stays as it is, and the sum is
    exported as `teacher`. features: as in PairsRun, of prompts, for that. prepared: what prepare_data left (runs/NAME),
    whose clips are taken instead of the world's; several such folders, with commas between them, may be of a shape each
    (training/buckets.py). tracking: figures to Weights & Biases, too (off, offline, online), as a run of `project`.
    """

    run: str = "train_teacher"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    start: str = ""
    prepared: str = ""
    features: str = ""
    device: str = "auto"
    clips: int = 4096
    clip_latents: int = 25
    shard: int = 256
    chunk: int = 32
    part: int = 0
    parts: int = 1
    workers: int = 16
    keep_frames: bool = True
    world: WorldConfig = WorldConfig()
    dit: DiTConfig = DiTConfig.nano()
    text: TextConfig = TextConfig.nano()
    flow: FlowMatchingConfig = FlowMatchingConfig()
    lora: LoraTraining = LoraTraining()
    train: TrainConfig = TrainConfig()
    tracking: str = "off"
    project: str = "livetalk"

    def __post_init__(self) -> None:
        known_name(self.name)
        at_least(1, self, "clips", "clip_latents", "shard", "chunk")
        at_least(0, self, "workers")
        if not self.prepared and self.flow.latents > self.clip_latents:
            raise ValueError(
                f"flow.latents={self.flow.latents} on clips of clip_latents={self.clip_latents}: make the clips longer"
            )
        known_part(self.part, self.parts)
        if self.lora.rank and (self.flow.causal or self.train.ema):
            raise ValueError(
                f"lora.rank={self.lora.rank} with flow.causal={self.flow.causal}, train.ema={self.train.ema}: adapters "
                "are trained alone and bidirectional, set both to 0"
            )
        if self.features and not self.lora.rank:
            raise ValueError(f"features={self.features}: the text encoder learns along, so nothing can be kept of it")

    @property
    def encodes(self) -> bool:
        """Whether this process encodes clips, and does not render its part alone."""
        return self.parts == 1 or not self.keep_frames


@dataclass(frozen=True)
class FamilyRun:
    """`scripts/make_family.sh`: a family for training, of the published files in pretrained_checkpoints/.

    family: the folder; size: of its teacher, score: of the larger one that DMD may follow, each one of SIZES_PUBLISHED,
    score "" for none; student: also the published distilled student, to go on from.
    """

    run: str = "make_family"
    family: str = "families/livetalk-1.3b"
    size: str = "1.3b"
    score: str = ""
    student: bool = False

    def __post_init__(self) -> None:
        for name, given, known in (("size", self.size, SIZES_PUBLISHED), ("score", self.score, ("", *SIZES_PUBLISHED))):
            if given not in known:
                raise ValueError(f"{name}={given} is not known: use {' or '.join(SIZES_PUBLISHED)}")
        if self.student and self.size != "1.3b":
            raise ValueError(f"student=true with size={self.size}: the published student is of 1.3b")


def _known_source(name: str) -> None:
    if name not in SOURCES:
        raise ValueError(f"source={name}: the parts whose trajectories a student can learn are {' and '.join(SOURCES)}")


@dataclass(frozen=True)
class PairsRun(Guided):
    """`scripts/generate_ode_pairs.sh`: trajectories of a family's teacher, to runs/NAME/pairs.

    count, held_out: pairs to train on and to judge by; shard: pairs a file, chunk: pairs a pass. Pictures, sound and
    prompts come from the world; or from a manifest of lines prompt@@image@@audio, the last of which are held out; or
    from what prepare_data left in the folder `prepared`, train and held-out clips; or, to train on, from a folder of
    encoded clips. steps, order: the teacher's; it visits each of the student's timesteps. part of parts: with parts > 1
    the process makes only its part of the shards. source: the part whose trajectories they are, teacher or
    teacher_causal; size: as in OdeRun. spoiled: share of the pairs to train on whose picture is blurred or wrongly
    cropped and whose prompt describes no motion (data/spoil.py), to see what curated conditions are worth. features: a
    folder that keeps what text and audio encoder make, so that neither is needed for what is there; "" for none.
    """

    run: str = "generate_ode_pairs"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    size: str = ""
    device: str = "auto"
    manifest: str = ""
    prepared: str = ""
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
    order: int = 1
    negative_prompt: str = ""
    seed: int = 0
    spoiled: float = 0.0
    features: str = ""
    compile: bool = False
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    world: WorldConfig = WorldConfig()

    def __post_init__(self) -> None:
        known_name(self.name)
        at_least(1, self, "count", "held_out", "shard", "chunk", "steps")
        at_least(0, self, "seed", "workers")
        known_part(self.part, self.parts)
        known_order(self.order)
        self.check_guidance()
        _known_source(self.source)
        if self.source == "teacher_causal" and self.parallel != 1:
            why = "the size of motion is read from the whole clip, of which a causal teacher sees a part"
            raise ValueError(f"parallel={self.parallel:g}: {why}; add parallel=1")
        if not 0 <= self.spoiled <= 1:
            raise ValueError(f"spoiled={self.spoiled}: it is a share, give a number from 0 to 1")
        if "," in self.prepared:
            alone = "pairs are of one shape: make those of each folder alone, with a name and geometry of its own"
            raise ValueError(f"prepared={self.prepared}: {alone}; train_ode and train_dmd take pairs=FOLDER,FOLDER")
        given = [name for name in ("manifest", "prepared", "clips") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set: pairs have one source, keep one of them")
        if self.spoiled and given:
            raise ValueError(f"spoiled={self.spoiled}: only pairs of the synthetic world are, leave {given[0]}= out")


@dataclass(frozen=True)
class OdeRun:
    """`scripts/train_ode.sh`: the causal student's start, by regression on ODE pairs, exported as part `student`.

    pairs: folder with train/ and dev/, by default runs/NAME/pairs; or several with commas between them, of a shape each
    (training/buckets.py), the first of `geometry`, in which the student is looked at; pairs_config: with which missing
    pairs are made first, a file of configs/ or a path, "" for not at all. chunk: pairs a pass when the student is
    judged, and `shown`: clips it is sampled for then, as `causal` and the cache of `geometry` say. The best checkpoint,
    which is exported, is the one of lowest dev error. source: the part that made the pairs, teacher or teacher_causal,
    with whose weights the student begins; size: what that must be of (models/dit.py's SIZES), and what a dry run
    without it takes. health: when the run warns and stops. tracking: figures, pictures and videos to Weights & Biases,
    too (off, offline, online), as one of the runs of `project`. features: as in PairsRun, of prompts.
    """

    run: str = "train_ode"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    size: str = ""
    device: str = "auto"
    pairs: str = ""
    pairs_config: str = ""
    features: str = ""
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
        known_name(self.name)
        at_least(1, self, "chunk", "shown")
        _known_source(self.source)


@dataclass(frozen=True)
class DmdRun:
    """`scripts/train_dmd.sh`: the causal student by Self-Forcing distribution matching, exported as part `student`.

    It starts from the ODE student, which is kept as part `student_ode`; the critic starts from the teacher, of `size`.
    score: the part whose judgement it follows, teacher or score, a larger one, of score_size.
    pairs, pairs_config, source: as in OdeRun, for their pictures, sound and prompts; ode_config: with which a missing
    ODE student is trained first, "" for not at all. prepared: what prepare_data left (runs/NAME), one folder or several
    as with pairs, whose clips are taken instead of pairs, and whose pictures are what the student is held against.
    shown: clips the student is sampled for at every checkpoint. train: also how the student learns; critic: how the
    critic does. tracking, project, features: as in OdeRun. teacher_precision: float32 or bfloat16, in which the
    teacher, which does not learn, is held.

    The best checkpoint, which is exported, is the one of highest A/V correlation, as the family's judges see it on
    held-out pairs, among those whose motion, contrast, sharpness and identity stay as near to the teacher's as `health`
    says; ties to the later. Pairs without truth: of the mouth most like the teacher's. Without judges: the latest of
    those; if there is none, the latest.
    """

    run: str = "train_dmd"
    name: str = "nano"
    family: str = "livetalk/assets/nano"
    source: str = "teacher"
    score: str = "teacher"
    size: str = ""
    score_size: str = ""
    device: str = "auto"
    pairs: str = ""
    pairs_config: str = ""
    prepared: str = ""
    features: str = ""
    teacher_precision: str = "float32"
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
        known_name(self.name)
        at_least(1, self, "shown")
        _known_source(self.source)
        if self.score not in SCORES:
            raise ValueError(f"score={self.score}: the parts that can judge are {' and '.join(SCORES)}")
        if self.teacher_precision != "float32" and self.train.precision != "bf16":
            raise ValueError(f"teacher_precision={self.teacher_precision} needs train.precision=bf16, too")


@dataclass(frozen=True)
class EvaluateRun:
    """`scripts/evaluate.sh`: figures of a family on `clips` clips of a split, its generators side by side.

    methods: some of METHODS, none for all that the family has; the teacher is measured at each of `scales`: guidance on
    sound and, unless text_scales, as many, say otherwise, on prompts. decoder: of all methods, as at inference; the
    student is shown with the family's other one, too. voice2: clips spoken by the world's second engine. timing:
    seconds for one clip, too. long_clips of long_seconds: what long_methods drift. workers: processes that render.
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
    order: int = 1
    scales: tuple[float, ...] = (2.0,)
    text_scales: tuple[float, ...] = ()
    parallel: float = 1.0
    skip: SkipLayer = SkipLayer()
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
        at_least(1, self, "frames", "prefix", "batch", "steps", "long_clips")
        at_least(0, self, "seed", "voice2", "workers")
        at_least(2, self, "clips")
        if not self.scales or not all(0 <= scale <= MOST_GUIDANCE for scale in (*self.scales, *self.text_scales)):
            given = f"scales={list(self.scales)}, text_scales={list(self.text_scales)}"
            raise ValueError(f"{given}: give some, from 0 to {MOST_GUIDANCE:g}, such as scales=[2.0]")
        if len(self.text_scales) not in (0, len(self.scales)):
            raise ValueError(
                f"text_scales={list(self.text_scales)}: give one for each of scales={list(self.scales)}, or []"
            )
        known_order(self.order)
        shares(self, "parallel")
        if self.long_seconds and self.long_seconds < 2 * END_SECONDS:
            raise ValueError(f"long_seconds={self.long_seconds}: give 0, or {2 * END_SECONDS} or more")
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
    "bench_training": BenchTrainingRun,
    "export": ExportRun,
    "serve": ServeRun,
    "livekit_agent": LivekitRun,
    "serve_fleet": FleetRun,
    "make_world": WorldSamples,
    "make_family": FamilyRun,
    "prepare_data": PrepareRun,
}
ALIASES = {"image_path": "image", "audio_path": "audio", "output_path": "output", "video_duration": "duration"}


def load(path: str | Path | None = None, overrides: list[str] | None = None, run: str = "inference") -> Any:
    """Reads a run config: schemas.read of RUNS, by default the one of `run`."""
    return read(path, overrides or [], RUNS, run, ALIASES)
