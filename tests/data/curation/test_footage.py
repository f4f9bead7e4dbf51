"""Files of many kinds on one clock: pictures that carry their number, sound that says when it is."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from livetalk.data.curation.footage import DamagedError, frames, probe, sound_of, videos_in
from livetalk.geometry import FPS, SAMPLE_RATE
from tests.data.curation.footage import at_rate, truncated, write_video

pytest.importorskip("av")
N = 40


def numbered(count=N, height=48, width=64):
    """Pictures whose lower blocks spell their number in binary, with a bright corner at the top left."""
    pictures = np.full((count, height, width, 3), 60, np.uint8)
    pictures[:, :16, :16] = 230
    for bit in range(8):
        on = (np.arange(count) >> bit) & 1 == 1
        pictures[on, 32:48, 8 * bit : 8 * bit + 8] = 200
    return pictures


def numbers(shown):
    """Their numbers, read from pixels."""
    picture = shown.picture
    rows, columns = picture.shape[0] * 40 // 48, picture.shape[1] / 64
    return sum((picture[rows, int((8 * bit + 4) * columns)].mean() > 130) << bit for bit in range(8))


def beep(second, seconds=N / FPS):
    pcm = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    at = round(second * SAMPLE_RATE)
    pcm[at : at + 800] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(800) / SAMPLE_RATE)
    return pcm


def onset(pcm):
    return np.flatnonzero(np.abs(pcm) > 0.1)[0] / SAMPLE_RATE


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_a_video_at_our_rate_comes_back_frame_by_frame(tmp_path, name):
    write_video(tmp_path / name, numbered(), beep(1.0))
    video = probe(tmp_path / name)
    shown = list(frames(video))
    assert video.size == (48, 64) and [numbers(one) for one in shown] == list(range(N))
    assert all(one.fresh for one in shown) and [one.index for one in shown] == list(range(N))
    assert abs(onset(sound_of(video)) - 1.0) < 0.005


@pytest.mark.parametrize("rate", [12, 24, 25, 29.97, 60])
def test_other_rates_keep_their_timing(tmp_path, rate):
    """Every frame is a picture that was taken within half of the source's interval, or shown for want of another."""
    pictures = numbered(N * 4)[:: round(64 / rate)] if rate > 30 else numbered(round(N / FPS * rate))
    stamps = np.arange(len(pictures)) / rate
    write_video(tmp_path / "a.mp4", pictures, None, stamps)
    shown = list(frames(probe(tmp_path / "a.mp4")))
    assert abs(len(shown) / FPS - len(pictures) / rate) < 1.5 / FPS
    own = [numbers(one) for one in [*map(Picture, pictures)]]
    at = np.array([stamps[own.index(numbers(one))] for one in shown]) - np.arange(len(shown)) / FPS
    assert at.max() <= 1 / 32 + 0.002 and at.min() >= -1 / rate - 0.002
    assert abs(at[:-2].mean()) < 0.02 or rate < FPS


class Picture:
    def __init__(self, picture):
        self.picture = picture


def test_a_variable_rate_keeps_its_timing(tmp_path):
    rng = np.random.default_rng(0)
    stamps = np.r_[0.0, np.cumsum(rng.uniform(0.02, 0.12, N - 1))]
    write_video(tmp_path / "a.mkv", numbered(), beep(1.0, stamps[-1]), stamps)
    shown = list(frames(probe(tmp_path / "a.mkv")))
    late = np.array([index / FPS - stamps[numbers(one)] for index, one in enumerate(shown)])
    assert late.min() >= -1 / 32 - 0.002 and late.max() <= 0.12
    assert [one.index for one in shown] == list(range(len(shown)))
    repeated = [b for a, b in pairwise(shown) if numbers(a) == numbers(b)]
    assert repeated and not any(one.fresh for one in repeated)
    assert np.mean([one.fresh for one in shown]) == len({numbers(one) for one in shown}) / len(shown)


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_a_rotation_is_undone(tmp_path, turned):
    write_video(tmp_path / "a.mp4", numbered(), None, turned=turned)
    video = probe(tmp_path / "a.mp4")
    shown = next(iter(frames(video, 5)))
    assert video.size == (48, 64) and shown.picture.shape == (48, 64, 3) and numbers(shown) == 5
    assert shown.picture[4, 4].mean() > 180 and shown.picture[4, -4].mean() < 100
    small = next(iter(frames(video, side=24)))
    assert small.picture.shape == (24, 32, 3) and small.picture[2, 2].mean() > 180


def test_entering_in_the_middle_equals_reading_all(tmp_path):
    write_video(tmp_path / "a.mp4", *at_rate(numbered(), 25)[:1], None, at_rate(numbered(), 25)[1])
    video = probe(tmp_path / "a.mp4")
    whole = list(frames(video))
    for start in (1, 13, 30, N - 1):
        part = list(frames(video, start, start + 5))
        assert [one.index for one in part] == [one.index for one in whole[start : start + 5]]
        assert all(np.array_equal(a.picture, b.picture) for a, b in zip(part, whole[start : start + 5], strict=True))


def test_sound_that_begins_late_or_early_keeps_its_place(tmp_path):
    write_video(tmp_path / "late.mkv", numbered(), beep(0.5), late=0.4)
    assert abs(onset(sound_of(probe(tmp_path / "late.mkv"))) - 0.9) < 0.005
    # Pictures that begin late: what was heard before the first one is cut off.
    write_video(tmp_path / "early.mkv", numbered(), beep(0.9), np.arange(N) / FPS + 0.4)
    video = probe(tmp_path / "early.mkv")
    assert video.start == Fraction(2, 5) and abs(onset(sound_of(video)) - 0.5) < 0.005
    assert [numbers(one) for one in frames(video)][:3] == [0, 1, 2]


def test_without_sound(tmp_path):
    video = probe(write_video(tmp_path / "a.mp4", numbered(), None))
    assert not video.sound and sound_of(video).shape == (0,)


def test_a_truncated_file_gives_what_it_has(tmp_path):
    rng = np.random.default_rng(0)
    noisy = numbered() // 2 + rng.integers(0, 90, (N, 48, 64, 3), dtype=np.uint8)
    video = probe(truncated(write_video(tmp_path / "a.mp4", noisy, None), 0.5))
    assert float(video.promised) == pytest.approx(N / FPS, abs=0.05)
    assert 3 < len(list(frames(video))) < N - 5


def test_what_is_no_video_is_damaged(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("a.mp4", "empty.mp4"):
        with pytest.raises(DamagedError, match="cannot be opened"):
            probe(tmp_path / name)
    import soundfile

    soundfile.write(tmp_path / "sound.wav", beep(0.1), SAMPLE_RATE)
    with pytest.raises(DamagedError, match="no picture"):
        probe(tmp_path / "sound.wav")


def test_videos_are_found_at_any_depth(tmp_path):
    for name in ("b/c.MOV", "a.mp4", ".hidden/x.mp4", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in videos_in(tmp_path)] == ["a.mp4", "c.MOV"]
