"""How videos are divided and framed: nothing is lost, nothing touches an obstacle, faces lie where they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetalk.data.curation import scan
from livetalk.data.curation.framing import crop_of, cropped, faults, steady
from livetalk.data.curation.limits import Limits
from livetalk.data.curation.scan import Obstacle, Seen
from livetalk.data.curation.stretches import GRAVEST, Stretch, joined, next_stretch

LIMITS = Limits()
obstacle = st.builds(
    lambda reason, start, length: Obstacle(reason, "", start, start + (0 if reason == "cut" else length)),
    st.sampled_from(GRAVEST),
    st.integers(1, 200),
    st.integers(1, 30),
)


@given(st.lists(obstacle, max_size=6), st.integers(1, 220), st.integers(5, 60), st.integers(0, 8))
def test_every_frame_is_accounted_for(found, total, length, slack):
    found = tuple(one for one in found if one.stop <= total and one.start < total)
    at, parts = 0, []
    while at < total:
        ahead = next_stretch(found, total, at, length, slack)
        if isinstance(ahead, Stretch):
            assert ahead.start == at and 0 <= ahead.room <= slack
            stop = at + length + ahead.room
            assert stop <= total and not any(one.within(at, stop) for one in found)
            at += length
        else:
            assert ahead.start == at and ahead.stop > at
            assert ahead.reason == "short" or any(one.reason == ahead.reason for one in found)
            parts.append(ahead)
            at = ahead.stop
    assert at == total
    merged = joined(parts)
    assert sum(part.stop - part.start for part in merged) == sum(part.stop - part.start for part in parts)


def test_the_gravest_reason_is_given():
    both = (Obstacle("silence", "", 3, 9), Obstacle("black", "dark", 5, 6))
    assert next_stretch(both, 40, 0, 20, 0) == Obstacle("black", "dark", 0, 6)
    cut = (Obstacle("cut", "", 10, 10),)
    assert next_stretch(cut, 40, 0, 20, 0) == Obstacle("cut", "", 0, 10)
    assert next_stretch(cut, 40, 10, 20, 0) == Stretch(10, 0)


def seen(count=40, **changes):
    rng = np.random.default_rng(0)
    box = np.tile([100.0, 100, 200, 200], (count, 1))
    still = np.repeat(rng.uniform(0.2, 0.8, (1, 18, 32, 3)), count, axis=0)
    whole = {
        "light": np.full(count, 0.5),
        "thumbnails": still + 0.01 * rng.standard_normal(still.shape),
        "faces": np.ones(count, int),
        "boxes": box,
        "fresh": np.ones(count, bool),
    }
    return Seen(**{**whole, **changes})


def test_a_quiet_video_has_no_obstacles():
    for look in (scan.black, scan.cuts, scan.still, scan.crowds):
        assert list(look(seen(), LIMITS)) == []


def test_a_cut_is_a_change_that_stands_out():
    whole = seen()
    other = np.random.default_rng(1).uniform(0.2, 0.8, (18, 32, 3))
    whole.thumbnails[25:] = other
    assert [(one.reason, one.start, one.stop) for one in scan.cuts(whole, LIMITS)] == [("cut", 25, 25)]
    # A flood of changes, as of a waving hand, is none.
    busy = seen(thumbnails=np.random.default_rng(2).uniform(0, 1, (40, 18, 32, 3)))
    assert list(scan.cuts(busy, LIMITS)) == []


def test_a_face_that_leaps_is_a_cut():
    whole = seen()
    whole.boxes[20:] += 90
    assert [one.detail for one in scan.cuts(whole, LIMITS)] == ["the face leaps at 1.25 s"]


def test_black_frames_however_few():
    light = np.full(40, 0.5)
    light[7] = 0.0
    assert [(one.reason, one.start, one.stop) for one in scan.black(seen(light=light), LIMITS)] == [("black", 7, 8)]
    assert [one.reason for one in scan.black(seen(light=np.ones(40)), LIMITS)] == ["white"]


def test_faces_may_flicker_for_a_moment():
    for number, reason in ((0, "no face"), (2, "several faces")):
        faces = np.ones(40, int)
        faces[5:8] = number
        assert list(scan.crowds(seen(faces=faces), LIMITS)) == []
        faces[5:12] = number
        found = list(scan.crowds(seen(faces=faces), LIMITS))
        assert [(one.reason, one.start, one.stop) for one in found] == [(reason, 5, 12)]


def test_one_picture_may_not_stand():
    fresh = np.ones(40, bool)
    fresh[10:14] = False
    assert list(scan.still(seen(fresh=fresh), LIMITS)) == []
    fresh[10:30] = False
    assert [(one.start, one.stop) for one in scan.still(seen(fresh=fresh), LIMITS)] == [(10, 30)]


def test_a_pause_is_not_silence():
    speech = np.ones(100, bool)
    speech[20:50] = False
    assert list(scan.silence(speech, LIMITS)) == []
    speech[20:60] = False
    assert [(one.start, one.stop) for one in scan.silence(speech, LIMITS)] == [(20, 60)]


@pytest.mark.parametrize("shape", [(512, 512), (832, 480), (480, 832)])
def test_a_crop_has_the_shape_and_the_face_in_its_middle(shape):
    boxes = np.tile([900.0, 400, 1200, 700], (50, 1))
    crop = crop_of(boxes, (1080, 1920), shape, LIMITS)
    assert crop.width / crop.height == pytest.approx(shape[1] / shape[0])
    assert crop.face == pytest.approx(LIMITS.face_share)
    left, top, right, bottom = crop.moved(boxes, shape[0])[0]
    assert (left + right) / 2 == pytest.approx(shape[1] / 2) and (top + bottom) / 2 == pytest.approx(shape[0] / 2)
    assert list(faults(crop, boxes, shape, LIMITS)) == []


def test_a_crop_stays_within_the_source():
    boxes = np.tile([0.0, 10, 200, 210], (50, 1))
    crop = crop_of(boxes, (360, 640), (256, 256), LIMITS)
    left, top, right, bottom = crop.area
    assert left >= 0 and top >= 0 and right <= 640 and bottom <= 360 and crop.height == 360
    reasons = dict(faults(crop, np.tile([300.0, 10, 500, 210], (50, 1)), (256, 256), LIMITS))
    assert set(reasons) == {"framing"}
    small = np.tile([300.0, 100, 340, 140], (50, 1))
    assert dict(faults(crop_of(small, (360, 640), (256, 256), LIMITS), small, (256, 256), LIMITS))["face size"]
    huge = np.tile([100.0, 20, 420, 340], (50, 1))
    assert "fills" in dict(faults(crop_of(huge, (360, 640), (256, 256), LIMITS), huge, (256, 256), LIMITS))["face size"]


def test_cropping_scales():
    whole = np.zeros((100, 200, 3), np.uint8)
    whole[20:60, 40:80] = 255
    boxes = np.tile([50.0, 30, 70, 50], (5, 1))
    out = cropped([whole] * 2, crop_of(boxes, (100, 200), (40, 40), LIMITS), (40, 40))
    assert out.shape == (2, 40, 40, 3) and out.min() > 250


def test_boxes_become_whole_and_steady():
    boxes = np.tile([10.0, 10, 50, 50], (20, 1)) + np.arange(20)[:, None]
    gaps = boxes.copy()
    gaps[5:9] = np.nan
    assert np.allclose(steady(gaps)[4:16], boxes[4:16])


def test_limits_are_checked():
    for change in ({"face_share": 0.8}, {"enlarge": 0.5}, {"speech": 1.5}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Limits(**change)
