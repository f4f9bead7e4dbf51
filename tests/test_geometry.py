import pytest

from livetalk import geometry
from livetalk.geometry import Geometry


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
