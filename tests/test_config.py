from dataclasses import fields, is_dataclass

import pytest

from livetalk.config import RUNS, InferenceRun, NanoRun, TeacherRun, flat, load
from livetalk.geometry import Geometry


def file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RUNS)
def test_every_schema_builds_from_its_defaults(name):
    loaded = load(run=name)
    assert type(loaded) is RUNS[name] and loaded == RUNS[name]() and loaded.run == name


@pytest.mark.parametrize("name", RUNS)
def test_flat_names_every_leaf_once(name):
    def leaves(config):
        values = [getattr(config, entry.name) for entry in fields(config)]
        return sum(leaves(value) if is_dataclass(value) else 1 for value in values)

    rows = flat(load(run=name))
    assert len(rows) == leaves(RUNS[name]()) and not any(is_dataclass(value) for value in rows.values())


def test_overrides_reach_nested_keys_and_leave_the_rest(tmp_path):
    path = file(tmp_path, "run: train_teacher\nclips: 7\ntrain: {steps: 5, betas: [0.5, 0.9]}\n")
    loaded = load(path, ["train.lr=3e-4", "dit.dim=96", "clips=9"])
    assert (loaded.clips, loaded.train.steps, loaded.train.lr, loaded.dit.dim) == (9, 5, 3e-4, 96)
    assert loaded.train.betas == (0.5, 0.9) and isinstance(loaded.train.betas, tuple)
    assert loaded.train.batch == TeacherRun().train.batch and loaded.dit.layers == TeacherRun().dit.layers


def test_a_whole_group_can_be_given_at_once():
    loaded = load(overrides=["geometry={height: 64, width: 96}", "causal.timesteps=[1000, 500]"])
    assert loaded.geometry == Geometry(height=64, width=96) and loaded.causal.timesteps == (1000.0, 500.0)


def test_partly_given_groups_keep_the_defaults_of_their_run(tmp_path):
    assert load(file(tmp_path, "run: train_nano\nvae: {res_blocks: 1}\n")).vae.base_dim == NanoRun().vae.base_dim


def test_published_names_are_aliases(tmp_path):
    arguments = ["image_path=a.png", "audio_path=b.wav", "output_path=c.mp4", "video_duration=2.5"]
    loaded = load(overrides=arguments)
    assert (loaded.image, loaded.audio, loaded.output, loaded.duration) == ("a.png", "b.wav", "c.mp4", 2.5)
    path = file(tmp_path, "run: inference\nimage_path: x.png\nvideo_duration: 3\n")
    assert load(path).image == "x.png" and load(path).duration == 3
    assert load(path, ["image=y.png"]).image == "y.png", "what is typed wins over the file"


def test_leading_zeros_mean_nothing():
    assert load(overrides=["seed=010"]).seed == 10 and load(overrides=["seed=007"]).seed == 7


def test_the_last_override_wins():
    assert load(overrides=["seed=1", "seed=2"]).seed == 2


TEXTS = ["costs ${x}", "${oc.env:HOME}", r"a \${b} \\${c} \n", "off", "1e3", "null", "a=b=c", "[x", "Ünï {cödé}", "#1"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_as_they_are_typed_and_as_they_are_quoted(text, tmp_path):
    assert load(overrides=[f"prompt={text}"]).prompt == text
    assert load(file(tmp_path, f"run: inference\nprompt: '{text}'\n")).prompt == text


WRONG_ARGUMENTS = {
    "sed=1": "did you mean 'seed'",
    "video_duratoin=1": "did you mean 'video_duration'",
    "geometry.heigth=64": "did you mean 'height'",
    "geometry={heigth: 64}": "geometry: unknown key 'heigth': did you mean 'height'",
    "zzzzzz=1": "known are .*seed",
    "geometry.height.x=1": "has no parts",
    "seed=x": "seed: 'x' is not a whole number: give for example",
    "seed=1.5": "seed: 1.5 is not a whole number",
    "seed=true": "seed: True is not a whole number",
    "seed=[1]": r"seed: \[1\] is not a whole number",
    "seed=": "seed",
    "seed=[1": r"seed: '\[1' cannot be read, it is not a whole number: give for example",
    "seed=${prompt}": "seed",
    "duration=long": "duration: 'long' is not a number: give for example",
    "causal.timesteps=5": "causal.timesteps: 5 is not a list of numbers: give for example",
    "causal.timesteps=[a]": r"causal.timesteps: \['a'\] is not a list of numbers: give for example",
    "causal.timesteps={a: 1}": "causal.timesteps: {'a': 1} is not a list of numbers",
    "geometry=5": "geometry: 5 is not a mapping of height",
    "geometry.height=7": "height 7 is not a positive multiple of 16",
    "prompt=???": "prompt: .* is not a value",
    "run=evaluate": "the script or the config file says what to run",
    "seed": "not key=value",
    "=1": "not key=value",
}


@pytest.mark.parametrize("argument", WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_in_one_line_that_names_them(argument):
    with pytest.raises(ValueError, match=WRONG_ARGUMENTS[argument]) as refused:
        load(overrides=[argument])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("run", "argument"),
    [
        *(("train_nano", f"{key}=0") for key in ("vae.base_dim", "vae.res_blocks", "audio.hidden", "audio.heads")),
        *(("train_nano", f"audio.{key}=-1") for key in ("layers", "ffn", "pos_kernel")),
        *(("train_teacher", f"dit.{key}=0") for key in ("dim", "heads", "layers", "in_channels", "text_dim")),
        *(("train_teacher", f"dit.{key}=-1") for key in ("ffn_dim", "out_channels", "freq_dim", "audio_dim")),
        *(("train_teacher", f"text.{key}=-1") for key in ("dim", "heads", "head_dim", "vocab", "buckets", "length")),
    ],
)
def test_networks_of_no_size_are_refused_by_name(run, argument):
    with pytest.raises(ValueError, match=argument.split(".")[1]):
        load(run=run, overrides=[argument])


WRONG_SIZES = {
    "train_nano": [
        *("clips=0", "held_out=0", "frames=-1", "judges_frames=0", "audio_others=0", "name=../a", "world.seed=-1"),
        *("vae_train.save_every=0", "decoder_train.keep=0", "judges_train.until=-1", "audio_train.seconds=-1"),
        *("vae_train.clip=0", "vae_train.warmup=-5", "vae_train.lr=-1", "vae_train.betas=[0.9, 1.0]"),
        *("vae_train.ema=1", "vae_train.weight_decay=-1", "vae_train.final_lr=-1", "vae_train.log_every=0"),
        *("vae_train.seed=-1", "judges.size=0", "judges.size=-32", "judges.video_width=-1", "judges.embedding=0"),
        *("judges.identity_features=-1", "judges.face_widths=[0, 4, 4, 4, 4]", "autoencoder.frames=-1"),
        *("autoencoder.long_frames=4", "autoencoder.crop=-8", "small_decoder_training.crop=-1"),
        *("small_decoder_training.whole_every=0", "audio_training.frames=0", "audio_training.others=1", "workers=-1"),
        *("judges_objective.identity_frames=0", "judges_objective.temperature=0", "judges_objective.spoil=2"),
    ],
    "train_teacher": [
        "clips=0",
        "clip_latents=0",
        "shard=-1",
        "chunk=0",
        "part=1",
        "parts=0",
        "flow.latents=26",
        "flow.prefix=21",
    ],
    "generate_ode_pairs": [
        "count=0",
        "held_out=0",
        "shard=0",
        "chunk=-2",
        "part=-1",
        "parts=0",
        "text_scale=101",
        "parallel=1.5",
        "order=3",
    ],
    "train_ode": ["chunk=0", "shown=0", "name=/a", "name=a/../../b", "train.lr=nan"],
    "train_dmd": [
        "shown=-1",
        "name=.",
        "critic.clip=nan",
        "critic.ema=-0.1",
        "geometry.clip_latents=0",
        "dmd.every=0",
        "dmd.text_scale=101",
        "dmd.parallel=-1",
    ],
    "prepare_data": ["name=../x", "chunk=0", "part=1", "seed=-1"],
    "ablate": ["name=../x", "part=-1", "steps=0", "seeds=[-1]", "seeds=[]"],
    "evaluate": [
        "frames=0",
        "seed=-1",
        "scales=[.nan]",
        "scales=[-1]",
        "prefix=0",
        "workers=-1",
        "order=0",
        "parallel=2",
    ],
    "inference": ["teacher.order=3", "teacher.parallel=.nan"],
}


@pytest.mark.parametrize(("run", "argument"), [(run, argument) for run in WRONG_SIZES for argument in WRONG_SIZES[run]])
def test_sizes_that_cannot_be_are_refused_by_name(run, argument):
    with pytest.raises(ValueError, match=argument.partition("=")[0].split(".")[-1]):
        load(run=run, overrides=[argument])


WRONG_FILES = {
    "": "empty or not a mapping",
    "- a": "not a mapping",
    "a: b: c": "not valid YAML: line 1, 'a: b: c' .*: put texts with",
    "run: inference\nseed: [1, 2": r"not valid YAML: line 2, 'seed: \[1, 2'",
    "seed: 1\n\tb: 2": "not valid YAML: line 2, 'b: 2' .*indent by spaces",
    "run: infrence": "did you mean 'inference'",
    "run:": "run: None is not known",
    "run: [inference]": "is not known",
    "run: inference\nsede: 1": "unknown key 'sede': did you mean 'seed'",
    "run: inference\n1: 1": "unknown key 1",
    "run: inference\ngeometry: {hight: 1}": "geometry: unknown key 'hight': did you mean 'height'",
    "run: inference\ngeometry:": "geometry: None is not a mapping",
    "run: inference\ngeometry: [1]": r"geometry: \[1\] is not a mapping",
    "run: inference\nprompt: yes": "prompt: True is not text: put it in quotes",
    "run: inference\nprompt: 007": "prompt: 7 is not text",
    "run: inference\nprompt:": "prompt: None is not text",
    "run: inference\nseed: many": "yaml: seed: 'many' is not a whole number",
    "run: inference\nimage: a\nimage_path: b": "'image_path' and 'image' are the same key",
    "run: train_teacher\ntrain: {betas: [1]}": r"train.betas: \[1\] is not a list of 2 numbers",
    "run: train_teacher\ntrain: {shard: maybe}": "train.shard: 'maybe' is not true or false",
    "run: train_teacher\ntrain: {lr: fast}": "train.lr: 'fast' is not a number",
    "run: train_teacher\ntrain: {steps: 0}": "steps=0",
    "run: train_nano\nworld: {size: [1]}": "world.size",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_wrong_files_are_refused_in_one_line(text, tmp_path):
    with pytest.raises(ValueError, match=WRONG_FILES[text]) as refused:
        load(file(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ValueError, match="none.yaml is not a file: name one of configs"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="not valid YAML"):
        load(binary)


def test_a_run_is_frozen():
    with pytest.raises(AttributeError):
        load().seed = 1
    assert load() == InferenceRun()
