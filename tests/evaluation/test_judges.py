"""Judges: interface, budget, storage; and that they learn to read a drawn head."""

import json

import pytest
import torch

from livetalk.evaluation import judges as module
from livetalk.evaluation.judges import TRACKS, Judges, JudgesConfig, load_judges, save_judges
from livetalk.evaluation.objective import JudgesObjective, ObjectiveConfig

from .toy import SIZE, toy_batch, toy_clip

READ = tuple(name for name in TRACKS if name not in ("brow", "smile", "mouth_width"))
SMALL = JudgesConfig(
    size=SIZE,
    face_widths=(8, 12, 16, 24, 32),
    identity_widths=(8, 12, 16, 24, 32),
    video_width=32,
    tracks=READ,
    attributes=("nod: nods",),
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Judges(SMALL)


def test_the_family_stays_in_its_budget():
    family = Judges(JudgesConfig(attributes=tuple(f"a{i}=b" for i in range(16))))
    count = sum(parameter.numel() for parameter in family.parameters())
    assert 2 * count < 2**20
    assert 0.3e6 < count < 0.45e6


@pytest.mark.parametrize("frames", [1, 5, 81])
def test_readings_have_the_stated_shapes(small, frames):
    read = small.read(torch.randint(0, 256, (2, frames, SIZE, SIZE, 3), dtype=torch.uint8))
    assert tuple(read.tracks) == READ and all(curve.shape == (2, frames) for curve in read.tracks.values())
    assert read.identity.shape == (2, frames, 64) and read.frame_features.shape == (2, frames, 64)
    assert read.video_features.shape == (2, 64) and read.attributes.shape == (2, 1)
    assert read.speech.shape == (2, frames)
    torch.testing.assert_close(read.identity.norm(dim=-1), torch.ones(2, frames))


def test_floats_and_bytes_read_alike_in_any_chunks(small):
    frames = torch.randint(0, 256, (3, 7, SIZE, SIZE, 3), dtype=torch.uint8)
    whole = small.read(frames)
    floats = small.read(frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1)
    pieces = small.read(frames, chunk=7)
    for other in (floats, pieces):
        for name in READ:
            torch.testing.assert_close(other.tracks[name], whole.tracks[name])
        torch.testing.assert_close(other.video_features, whole.video_features)
    for tracks in (small.read_tracks(frames), small.read_tracks(frames, chunk=7)):
        assert tracks.keys() == whole.tracks.keys()
        torch.testing.assert_close(tracks["eye_open"], whole.tracks["eye_open"])


def test_other_sizes_are_cropped_and_resampled():
    frames = torch.zeros(1, 2, 100, 140, 3, dtype=torch.uint8)
    frames[:, :, :, 20:120] = 255
    assert torch.all(module.prepare(frames, 64) > 0.999)
    for wrong in (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8), torch.zeros(1, 2, 8, 8, 3)):
        with pytest.raises(ValueError, match="judges read"):
            module.prepare(wrong, 64)


def test_reading_ignores_autocast(small):
    frames = torch.randint(0, 256, (1, 4, SIZE, SIZE, 3), dtype=torch.uint8)
    plain = small.read(frames).tracks["yaw"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(small.read(frames).tracks["yaw"], plain)
        torch.testing.assert_close(small.read_tracks(frames)["yaw"], plain)


def test_odd_configs_are_refused():
    for change in ({"size": 100}, {"face_widths": (8, 8)}, {"tracks": ("yaw",)}, {"identity_widths": (6,) * 5}):
        with pytest.raises(ValueError, match="judges"):
            JudgesConfig(**change)


def test_storage_round_trip_and_refusals(small, tmp_path):
    with torch.no_grad():
        small.face.track_scale.fill_(0.123456)
    weights = save_judges(small, tmp_path / "judges")
    loaded = load_judges(tmp_path / "judges")
    assert loaded.config == SMALL
    assert torch.equal(loaded.face.track_scale, small.face.track_scale)
    expected = small.state_dict()["face.head.weight"].bfloat16().float()
    assert torch.equal(loaded.state_dict()["face.head.weight"], expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    config = tmp_path / "judges" / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps(stored | {"embedding": 32}))
    with pytest.raises(ValueError, match=r"identity\.head\.weight: expected \(32, 32\), found \(64, 32\)"):
        load_judges(tmp_path / "judges")
    config.write_text(json.dumps(stored | {"colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        load_judges(tmp_path / "judges")
    weights.unlink()
    with pytest.raises(ValueError, match=r"judges\.safetensors is missing"):
        load_judges(tmp_path / "judges")


def train(steps, clips, batch, seed=0):
    """A short run on drawn clips; returns the objective and its losses."""
    torch.manual_seed(seed)
    objective = JudgesObjective(Judges(SMALL), ObjectiveConfig(shift=0.0, zoom=0.0, identity_frames=3))
    objective.calibrate([toy_batch(clips)])
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3, betas=(0.9, 0.95))
    generator, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        chosen = torch.randperm(len(clips), generator=generator)[:batch].tolist()
        loss, _ = objective.loss(toy_batch([clips[i] for i in chosen]), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return objective, losses


def test_judges_learn_a_toy_batch_and_repeat_themselves():
    clips = [toy_clip(i, identity=i % 4, frames=12) for i in range(8)]
    objective, losses = train(45, clips, 8)
    assert losses[-1] < 0.6 * losses[0]
    errors = objective.evaluate([toy_batch(clips)])
    assert errors["mouth_open/pearson in clip"] > 0.9
    assert errors["identity/auc"] > 0.9
    assert errors == objective.evaluate([toy_batch(clips)])
    assert train(2, clips, 8)[1] == train(2, clips, 8)[1]


@pytest.mark.slow
def test_judges_generalise_to_new_clips_and_people():
    objective, _ = train(200, [toy_clip(i, identity=i % 16) for i in range(128)], 8)
    errors = objective.evaluate([toy_batch([toy_clip(1000 + i, identity=100 + i % 8) for i in range(32)])])
    assert errors["mouth_open/pearson in speech"] > 0.95
    assert errors["mouth_open/pearson in speech, spoiled frames"] > 0.95
    assert errors["yaw/pearson"] > 0.9
    assert errors["identity/auc"] > 0.9
    assert errors["speech/accuracy"] > 0.85
