import numpy as np
import pytest
from PIL import Image

from livetalk.data.world.clip import World
from livetalk.data.world.speech import Phone
from livetalk.data.world.take import WorldConfig, make_take, prepare_many, speech_mask

CONFIG = WorldConfig(engine="tone", second_engine="tone", size=32, supersample=1, train_people=5)
TRACKS = ("mouth_open", "mouth_width", "eye_open", "pitch", "yaw", "roll", "blink", "smile", "brow", "speech")


@pytest.fixture(scope="module")
def world():
    with World(CONFIG) as opened:
        yield opened


def same(a, b):
    assert (a.prompt, a.text, a.identity, a.attributes) == (b.prompt, b.text, b.identity, b.attributes)
    assert np.array_equal(a.pcm, b.pcm) and np.array_equal(a.frames, b.frames)
    assert a.tracks["phonemes"] == b.tracks["phonemes"]
    for name in TRACKS:
        assert np.array_equal(a.tracks[name], b.tracks[name]), name


def test_a_clip_is_what_it_says(world):
    for frames in (1, 9, 30):
        clip = world.clip("train", 2, frames)
        assert clip.frames.shape == (frames, 32, 32, 3) and clip.frames.dtype == np.uint8
        assert np.array_equal(clip.reference, clip.frames[0])
        assert clip.pcm.shape == (frames * 1000,) and clip.pcm.dtype == np.float32
        assert set(clip.tracks) == {*TRACKS, "phonemes"}
        assert all(len(clip.tracks[name]) == frames for name in TRACKS)
        assert all(0 <= p.start < p.end <= frames / 16 for p in clip.tracks["phonemes"])
    assert clip.frames.std() > 5 and np.abs(np.diff(clip.frames.astype(int), axis=0)).max() > 0


def test_clips_do_not_depend_on_their_batch(world):
    together = world.batch("train", [7, 1, 4], 9)
    assert [clip.index for clip in together] == [7, 1, 4]
    for clip in together:
        same(clip, world.clip("train", clip.index, 9))
    with World(CONFIG) as again:
        same(together[1], again.clip("train", 1, 9))
    other = World(WorldConfig(**{**vars(CONFIG), "seed": 1})).clip("train", 1, 9)
    assert not np.array_equal(other.pcm, together[1].pcm)


def test_processes_change_nothing():
    here = list(prepare_many(CONFIG, "train", range(6), 20))
    there = list(prepare_many(CONFIG, "train", range(6), 20, workers=2))
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a.pcm, b.pcm) and a.phones == b.phones and a.prompt == b.prompt
        assert np.array_equal(a.motion.expression, b.motion.expression)


def test_splits_share_nobody(world):
    takes = {split: [make_take(CONFIG, split, 5, i) for i in range(12)] for split in ("train", "dev", "test")}
    shapes = {s: {world.look(t).identity.tobytes() for t in ts} for s, ts in takes.items()}
    assert not (shapes["train"] & shapes["dev"] or shapes["train"] & shapes["test"] or shapes["dev"] & shapes["test"])
    assert len(shapes["train"]) == 5
    second = make_take(CONFIG, "test-voice2", 5, 3)
    assert second.identity == takes["test"][3].identity and second.text == takes["test"][3].text
    with pytest.raises(ValueError, match="'validation'"):
        make_take(CONFIG, "validation", 5, 0)


def test_a_person_keeps_the_face_in_another_scene(world):
    takes = [make_take(CONFIG, "train", 5, i) for i in range(12)]
    a, b = next((x, y) for x in takes for y in takes if x.index < y.index and x.identity == y.identity)
    one, two = world.look(a), world.look(b)
    assert np.array_equal(one.identity, two.identity) and one.face == two.face and one.hair == two.hair
    assert one.light != two.light and one.camera != two.camera


def test_silence_and_starts_come_in_their_shares():
    takes = [make_take(WorldConfig(engine="tone", silent=0.2), "train", 81, i) for i in range(120)]
    silent = [take for take in takes if not take.phones]
    assert 12 <= len(silent) <= 38
    assert all(np.abs(take.pcm).max() < 0.02 and not take.speech.any() and take.text == "" for take in silent)
    spoken = [take for take in takes if take.phones]
    assert all(take.speech.sum() > 16 and np.abs(take.pcm).max() > 0.05 for take in spoken)
    assert 0.3 < np.mean([take.speech[0] for take in spoken]) < 0.6


def test_mouth_rests_in_silence_and_moves_in_speech(world):
    for i in range(4):
        tracks = world.clip("train", i, 60).tracks
        resting = ~np.convolve(tracks["speech"], np.ones(11), mode="same").astype(bool)
        if resting.any() and tracks["speech"].any():
            rest = tracks["mouth_open"][resting]
            assert rest.max() - rest.min() < 0.01
            assert tracks["mouth_open"][tracks["speech"]].max() > rest.max() + 0.03


def test_sound_is_where_the_phonemes_are():
    take = make_take(WorldConfig(engine="tone", silent=0.0), "dev", 81, 3)
    inside = np.zeros(len(take.pcm), bool)
    for phone in take.phones:
        if phone.ipa not in "ptk":
            inside[max(0, round(phone.start * 16000)) : max(0, round(phone.end * 16000))] = True
    assert np.abs(take.pcm[inside]).mean() > 10 * np.abs(take.pcm[~inside]).mean()


def test_speech_mask_bridges_short_gaps():
    phones = [Phone(0.1, 0.5, "a"), Phone(0.6, 0.8, "b"), Phone(1.2, 1.4, "a")]
    assert np.flatnonzero(speech_mask(phones, 30)).tolist() == [*range(2, 13), *range(20, 23)]


@pytest.mark.parametrize("change", [{"silent": 2.0}, {"size": 0}, {"slowest": 300.0}])
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        WorldConfig(**change)


def test_samples_are_written(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    from livetalk.data.world_samples import WorldSamples, write_samples

    sheet = write_samples(WorldSamples(clips=2, frames=18, output=str(tmp_path / "out"), world=CONFIG))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    parts = [f"train-0000{i}.{kind}" for i in range(2) for kind in ("json", "mp4", "png")]
    assert names == sorted([*parts, "sheet.png"])
    assert Image.open(sheet).size == (12 * 32, 2 * 32)
    assert Image.open(tmp_path / "out" / "train-00001.png").size == (16 * 32, 2 * (32 + 14))
