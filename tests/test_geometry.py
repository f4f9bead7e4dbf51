import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from livetalk import geometry
from livetalk.geometry import Geometry, bucket


@pytest.mark.parametrize("latents", range(1, 40))
def test_latents_cover_exactly_their_frames(latents):
    frames = geometry.frames_of_latents(latents)
    assert geometry.latents_of_frames(frames) == latents
    assert geometry.latents_of_frames(frames + 1) == latents + 1
    spans = [geometry.frame_span(i) for i in range(latents)]
    assert [frame for span in spans for frame in range(*span)] == list(range(frames))


def test_a_clip_is_never_shorter_than_its_sound():
    assert [geometry.clip_frames(n) for n in (0, 1, 1000, 1001, 81_000)] == [1, 1, 1, 2, 81]
    assert geometry.samples_of_seconds(5.0625) == 81_000


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_impossible_durations_are_refused(seconds):
    with pytest.raises(ValueError, match="duration"):
        geometry.samples_of_seconds(seconds)


def test_published_sizes():
    g = Geometry(512, 512)
    assert (g.latent_height, g.latent_width, g.tokens_per_frame, g.clip_frames) == (64, 64, 1024, 81)
    assert Geometry(480, 832).tokens_per_frame == 1560
    assert Geometry(128, 128).tokens_per_frame == 64
    assert [g.blocks(n) for n in (1, 9, 10, 81)] == [1, 1, 2, 7]


@pytest.mark.parametrize("change", [{"height": 100}, {"width": 0}, {"anchors": 13}, {"block": 4}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValueError):
        Geometry(**change)


@given(st.integers(1, 21), st.integers(1, 21), st.sampled_from([128 * 128, 512 * 512, 832 * 480, 720 * 1280]))
def test_buckets_are_whole_tokens_of_about_the_size_and_shape(across, down, pixels):
    assume(1 / 3 < across / down < 3)
    height, width = bucket(across, down, pixels)
    Geometry(height, width)
    assert 0.75 < height * width / pixels < 1.3 and 0.85 < width / height * down / across < 1.17


def test_known_buckets():
    assert bucket(1, 1, 512 * 512) == (512, 512) and bucket(3, 4, 512 * 512) == (576, 432)
    assert bucket(9, 16, 832 * 480) == (848, 480)
    with pytest.raises(ValueError, match="0:4 of 99 pixels"):
        bucket(0, 4, 99)
