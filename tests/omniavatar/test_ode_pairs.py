import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from livetalk import config, flow
from livetalk.commands.generate_ode_pairs import generate_ode_pairs, make_pairs, read_manifest
from livetalk.conditions import Conditions
from livetalk.data import encoded, pairs
from livetalk.data.spoil import MOTIONLESS, spoilt
from livetalk.data.world.clip import World
from livetalk.flow import Guidance, SkipLayer
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.parts import load_part
from livetalk.pipeline import EXAMPLE_AUDIO, EXAMPLE_IMAGE
from OmniAvatar.ode_pairs import clip_noise, stops, trajectory
from OmniAvatar.sampling import sample
from tests.models.test_dit import clip, tiny

LEVELS = (1000.0, 937.5, 2500 / 3, 625.0)
DEBUG = Path(__file__).parents[2] / "configs" / "generate_ode_pairs_debug.yaml"


def test_the_teacher_stops_where_the_student_will():
    assert stops(LEVELS, 48) == [0, 12, 24, 36, 48]
    assert stops(LEVELS, 4) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="multiple of 4"):
        stops(LEVELS, 50)
    with pytest.raises(ValueError, match="700 is none"):
        stops((1000.0, 700.0), 48)
    with pytest.raises(ValueError, match="largest first"):
        stops(LEVELS[::-1], 48)


@torch.no_grad()
def test_a_trajectory_is_euler_steps_written_out():
    dit = tiny()
    noise, conditions = clip(batch=2)
    empty = torch.zeros_like(conditions.text[:1])
    found = trajectory(dit, conditions, empty, noise, LEVELS, steps=8, guidance=Guidance(3, 2))
    sigmas = [*flow.shifted_sigmas(8).tolist(), 0.0]
    sides = conditions.null(empty), conditions.without_audio(), conditions
    x, wanted = noise.clone(), []
    for step in range(9):
        x[:, :, :1] = conditions.reference
        if step % 2 == 0:
            wanted.append(x.transpose(1, 2).clone())
        if step < 8:
            t = torch.full((2,), 1000 * sigmas[step], dtype=torch.float64)
            null, text, full = (dit(x, t, side, FullAttention()) for side in sides)
            x = x + (sigmas[step + 1] - sigmas[step]) * flow.guide(null, text, full, 3, 2)
    assert found.shape == (2, 5, 6, 16, 4, 6)
    assert torch.allclose(found, torch.stack(wanted, 1))
    assert torch.equal(found[:, :, :1], conditions.reference.transpose(1, 2)[:, None].expand(-1, 5, -1, -1, -1, -1))


@torch.no_grad()
def test_a_trajectory_of_second_order_ends_where_sampling_does():
    dit = tiny()
    noise, conditions = clip(batch=2)
    settings = {"steps": 8, "order": 2, "guidance": Guidance(3, 2)}
    empty = torch.zeros_like(conditions.text[:1])
    found = trajectory(dit, conditions, empty, noise, LEVELS, **settings)
    assert torch.equal(found[:, -1].transpose(1, 2), sample(dit, conditions, empty, noise, **settings))
    assert not torch.allclose(
        found, trajectory(dit, conditions, empty, noise, LEVELS, steps=8, guidance=Guidance(3, 2))
    )


def test_a_trajectory_may_lead_away_from_a_teacher_without_a_layer():
    dit, (noise, conditions) = tiny(), clip()
    empty = torch.zeros_like(conditions.text)
    plain, away = (
        trajectory(dit, conditions, empty, noise, LEVELS, steps=8, guidance=Guidance(3, 2, skip=skip))
        for skip in (SkipLayer(), SkipLayer(0.6, layer=1))
    )
    # The steps to its fourth stop, at 0.625, and to the end begin at levels of the layer.
    assert torch.equal(plain[:, :3], away[:, :3])
    assert all(not torch.allclose(plain[:, stop], away[:, stop]) for stop in (3, 4))


@pytest.mark.parametrize("skip", [SkipLayer(), SkipLayer(0.6, layer=1)])
def test_a_causal_teacher_s_first_block_does_not_know_what_comes(skip):
    dit, (noise, conditions) = tiny(), clip()
    later = torch.cat([noise[:, :, :3], torch.randn_like(noise[:, :, 3:])], dim=2)
    empty, attend = torch.zeros_like(conditions.text), BlockCausal(3)

    def first(start, parallel):
        guidance = Guidance(1.5, 3, parallel, skip)
        return trajectory(dit, conditions, empty, start, LEVELS, steps=8, guidance=guidance, attend=attend)[:, :, :3]

    assert torch.allclose(first(noise, 1.0), first(later, 1.0))
    # What each place moves by is read from the whole clip.
    assert not torch.allclose(first(noise, 0.0), first(later, 0.0), atol=1e-3)
    with pytest.raises(ValueError, match="parallel=0: .* of which a causal teacher sees a part; add parallel=1"):
        config.PairsRun(source="teacher_causal", parallel=0.0)


def test_noise_belongs_to_a_clip():
    whole = clip_noise(3, range(4), (2, 3))
    assert torch.equal(whole[2:], clip_noise(3, [2, 3], (2, 3))) and not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, clip_noise(4, range(4), (2, 3)))


@pytest.fixture
def run(tiny_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return replace(config.load(DEBUG), family=str(tiny_family), name="a")


def shards(name):
    return {path.relative_to(f"runs/{name}/pairs"): path for path in Path(f"runs/{name}/pairs").glob("*/shard-*")}


def same(a, b):
    assert set(shards(a)) == set(shards(b)) and shards(a)
    for name, path in shards(a).items():
        one, other = load_file(path), load_file(shards(b)[name])
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_parts_and_restarts_make_the_same_shards_and_the_shards_are_direct_samples(run, capsys):
    generate_ode_pairs(run)
    assert capsys.readouterr().out.splitlines()[-1] == "pairs: runs/a/pairs"
    assert len(shards("a")) == 3 and not list(Path("runs").rglob("*.partial"))

    for part in (1, 0):
        generate_ode_pairs(replace(run, name="b", part=part, parts=2))
    same("a", "b")

    torn = sorted(Path("runs/b/pairs/train").glob("shard-*"))[0]
    kept = {path: path.stat().st_mtime_ns for path in shards("b").values() if path != torn}
    torn.rename(torn.with_name(f".{torn.name}.123.partial"))
    generate_ode_pairs(replace(run, name="b"))
    same("a", "b")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "whole shards are not made again"
    assert not list(Path("runs").rglob("*.partial"))

    fingerprint = encoded.fingerprint(load_part(run.family, "teacher"))
    found = pairs.load(Path("runs/a/pairs/train"), run.timesteps, fingerprint)
    assert found.states.shape == (5, 5, 6, 16, 8, 8) and found.audio.shape[:2] == (5, 21) and len(found) == 5
    assert not found.tracks, "the truth is kept of held-out pairs alone"
    held_out = pairs.load(Path("runs/a/pairs/dev"), run.timesteps, fingerprint)
    with World(run.world) as world:
        clip = world.clip("dev", 1, 21)
    for name in pairs.TRACKS:
        truth = torch.from_numpy(clip.tracks[name]).float()
        assert torch.allclose(held_out.tracks[name][1].float(), truth, rtol=0.01), name
    last = torch.tensor([4])
    text = load_part(run.family, "text")
    direct = sample(
        load_part(run.family, "teacher"),
        found.conditions(last, text.encode(found.prompts[4:])),
        text.encode([""]),
        clip_noise(run.seed, [4], (16, 6, 8, 8)),
        steps=run.steps,
        guidance=Guidance(run.text_scale, run.audio_scale),
    )
    # The direct run starts from conditions rounded to bfloat16.
    assert torch.allclose(found.states[4:, -1].float(), direct.transpose(1, 2), atol=0.02, rtol=0.02)


def test_what_does_not_fit_is_refused(run, tmp_path):
    make_pairs(run, torch.device("cpu"), (0, 1))
    teacher = encoded.fingerprint(load_part(run.family, "teacher"))
    folder = Path("runs/a/pairs/train")
    pairs.load(folder, run.timesteps, teacher)
    for other in ({"text_scale": 5.0}, {"parallel": 0.0}, {"skip": SkipLayer(0.6, layer=1)}):
        with pytest.raises(ValueError, match="other settings"):
            make_pairs(replace(run, **other), torch.device("cpu"), (0, 1))
    with pytest.raises(ValueError, match="no ODE pairs: make them with"):
        pairs.load(tmp_path / "none", run.timesteps, teacher)
    with pytest.raises(ValueError, match="timesteps"):
        pairs.load(folder, (1000.0, 625.0), teacher)
    with pytest.raises(ValueError, match="another teacher"):
        pairs.load(folder, run.timesteps, "0" * 16)

    index = folder / "index.json"
    true = index.read_text()
    changed = json.loads(true)
    changed["settings"]["steps"] = 48
    index.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="changed by hand"):
        pairs.load(folder, run.timesteps, teacher)
    index.write_text(true)

    shard = encoded.shard_path(folder, 1)
    tensors, prompts = encoded.read_shard(shard)
    save_file({**tensors, "states": tensors["states"][:, :3].contiguous()}, shard, {"prompts": json.dumps(prompts)})
    with pytest.raises(ValueError, match="the index promises"):
        pairs.load(folder, run.timesteps, teacher)
    shard.unlink()
    assert not pairs.complete(folder)
    with pytest.raises(ValueError, match="lacks shards"):
        pairs.load(folder, run.timesteps, teacher)


def test_a_manifest_is_a_source_too(run, tmp_path):
    shutil.copy(EXAMPLE_IMAGE, tmp_path / "face.png")
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"nods@@face.png@@{EXAMPLE_AUDIO}\n\nturns left@@face.png@@{EXAMPLE_AUDIO}\n")
    small = replace(run, manifest=str(manifest), count=1, held_out=1)
    make_pairs(small, torch.device("cpu"), (0, 1))
    states, prompts = encoded.read_shard(encoded.shard_path(Path("runs/a/pairs/dev"), 0))
    assert prompts == ["turns left"] and states["states"].isfinite().all()
    assert states.keys() == {"states", "audio"}, "nobody knows the truth of a manifest"
    with pytest.raises(ValueError, match="has 2 lines"):
        make_pairs(replace(small, name="b", held_out=2), torch.device("cpu"), (0, 1))
    for text, message in [("nods@@face.png", "line 1"), ("a@@b.png@@c.wav", "not found")]:
        manifest.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_manifest(manifest)


def test_a_manifest_of_other_editors_and_places_is_read(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("lists/face.png", "face.png", "voice.wav"):
        Path(name).touch()
    manifest = Path("lists/a.txt")
    manifest.write_bytes("nods@@face.png@@voice.wav\r\n".encode("utf-8-sig"))
    assert read_manifest(manifest) == [("nods", "lists/face.png", "voice.wav")], "its own folder comes first"
    manifest.write_bytes("nods@@face.png@@voice.wav\nn\u00e4ht@@a.png@@b.wav\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.txt, line 2: this is not UTF-8"):
        read_manifest(manifest)
    manifest.write_text("nods@@b.png@@voice.wav\n")
    with pytest.raises(ValueError, match="line 1: b.png not found, neither from lists nor from here"):
        read_manifest(manifest)


def test_encoded_clips_are_a_source_too(run, tmp_path):
    def make(start, stop):
        latents = torch.randn(stop - start, 16, 7, 8, 8).bfloat16()
        channels = load_part(run.family, "audio").config.channels
        return {"latents": latents, "audio": torch.randn(stop - start, 25, channels).bfloat16()}, ["nods"] * (
            stop - start
        )

    encoded.write(tmp_path / "clips", 2, 2, {}, make)
    make_pairs(replace(run, name="c", clips=str(tmp_path / "clips"), count=2), torch.device("cpu"), (0, 1))
    found, _ = encoded.read_shard(encoded.shard_path(Path("runs/c/pairs/train"), 0))
    latents = encoded.load(tmp_path / "clips").latents
    assert torch.equal(found["states"][:, 2, 0], latents[:, :, 0])


def test_a_dry_run_ends_with_the_memory(run, capsys):
    generate_ode_pairs(run, dry_run=True)
    assert capsys.readouterr().out.splitlines()[-1].startswith("total memory: ")
    with pytest.raises(ValueError, match="make them equal"):
        make_pairs(replace(run, world=replace(run.world, size=128)), torch.device("cpu"), (0, 1))


def test_conditions_of_pairs():
    states = torch.randn(3, 5, 6, 16, 4, 6).bfloat16()
    audio = torch.randn(3, 21, 8).bfloat16()
    found = pairs.OdePairs(states, audio, ["a", "b", "c"], LEVELS)
    got = found.conditions(torch.tensor([2, 0]), torch.zeros(2, 5, 10))
    assert isinstance(got, Conditions) and got.first == 0 and got.prefix == 1
    assert torch.equal(got.reference[0, :, 0], states[2, -1, 0].float()) and got.audio.shape == (2, 6, 32)


def test_spoiled_conditions_change_what_is_trained_on_alone_and_are_recorded(run):
    device = torch.device("cpu")
    for name, share in (("a", 0.0), ("b", 0.5), ("c", 1.0)):
        make_pairs(replace(run, name=name, spoiled=share), device, (0, 1))
    fingerprint = encoded.fingerprint(load_part(run.family, "teacher"))
    clean, some, every = (
        pairs.load(Path(f"runs/{name}/pairs/train"), run.timesteps, fingerprint) for name in ("a", "b", "c")
    )
    whole = Path("runs/a/pairs/train/index.json").read_text(), Path("runs/a/pairs/dev/index.json").read_text()
    assert not any("spoiled" in text for text in whole), "folders of before stay valid"
    assert some.settings["spoiled"] == 0.5 and every.settings["spoiled"] == 1.0
    for name in ("b", "c"):
        assert Path(f"runs/{name}/pairs/dev/index.json").read_text() == whole[1]
        one, other = (load_file(f"runs/{each}/pairs/dev/shard-00000.safetensors") for each in ("a", name))
        assert all(torch.equal(one[key], other[key]) for key in one), "the held-out ones stay clean"
    for index in range(len(clean)):
        how = spoilt(index, run.seed, 0.5)
        references = [found.states[index, -1, 0] for found in (clean, some)]
        assert torch.equal(*references) == (how is None)
        assert some.prompts[index] == (clean.prompts[index] if how is None else how.prompt)
        assert every.prompts[index] in MOTIONLESS and torch.equal(clean.audio[index], every.audio[index])


def test_what_cannot_be_spoiled_is_refused():
    for word, reason in (
        ("spoiled=1.5", "from 0 to 1"),
        ("spoiled=nan", "is not a number"),
        ("spoiled=-1", "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            config.load(DEBUG, [word.replace("nan", ".nan")])
    for source in ("manifest=a.txt", "clips=runs/a/clips"):
        with pytest.raises(ValueError, match="only pairs of the synthetic world"):
            config.load(DEBUG, [source, "spoiled=0.5"])
        with pytest.raises(ValueError, match="only pairs of the synthetic world"):
            config.load(DEBUG, ["spoiled=0.5", source])
