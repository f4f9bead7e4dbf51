import numpy as np
import pytest
import torch

from livetalk.data import spoil
from livetalk.data.spoil import BLURRED, CROPPED, MOTIONLESS, spoil_picture, spoilt
from livetalk.data.world.prompts import _PHRASES


def test_who_is_spoiled_depends_on_index_and_seed_alone_and_a_larger_share_holds_the_smaller():
    some, more = ([spoilt(i, 3, share) for i in range(400)] for share in (0.25, 0.5))
    assert some == [spoilt(i, 3, 0.25) for i in range(400)]
    assert all(a == b for a, b in zip(some, more, strict=True) if a is not None)
    assert np.mean([a is not None for a in some]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([a is not None for a in more]) == pytest.approx(0.5, abs=0.06)
    assert [spoilt(i, 4, 0.25) for i in range(400)] != some
    assert not any(spoilt(i, 3, 0.0) for i in range(400)) and all(spoilt(i, 3, 1.0) for i in range(400))


def test_crops_lie_inside_and_off_the_centre():
    found = [spoilt(i, 0, 1.0) for i in range(400)]
    assert {one.kind for one in found} == {BLURRED, CROPPED}
    for one in found:
        for start in (one.top, one.left):
            assert 0 <= start <= 1 - one.side + 1e-9
            assert abs(start + one.side / 2 - 0.5) >= 0.25 * (1 - one.side) - 1e-9
    assert len({(one.top > 0.2, one.left > 0.2) for one in found}) == 4, "every corner comes up"


def test_prompts_describe_no_motion():
    said = {phrase for phrases in _PHRASES.values() for phrase in phrases}
    assert not [prompt for prompt in MOTIONLESS if any(phrase in prompt.lower() for phrase in said)]
    assert {spoilt(i, 0, 1.0).prompt for i in range(200)} == set(MOTIONLESS)


def test_a_blur_keeps_what_is_even_and_smears_a_point_symmetrically():
    assert torch.allclose(spoil.blur(torch.full((3, 32, 48), 0.3)), torch.tensor(0.3))
    point = torch.zeros(1, 33, 33, dtype=torch.float64)
    point[0, 16, 16] = 1
    seen = spoil.blur(point)[0]
    assert seen.sum() == pytest.approx(1) and torch.allclose(seen, seen.flip(0)) and torch.allclose(seen, seen.T)
    place = torch.arange(33, dtype=torch.float64) - 16
    deviation = (seen.sum(0) * place.square()).sum().sqrt()
    assert float(deviation) == pytest.approx(spoil.BLUR * 33, rel=0.05)


def test_a_crop_shows_its_part_as_a_whole():
    ramp = torch.linspace(0, 1, 64).expand(3, 32, 64)
    part = spoil.crop(ramp, 0.25, 0.5, 0.5)
    assert part.shape == ramp.shape and part.min() >= ramp[0, 0, 32] - 1e-6 and part.max() == pytest.approx(1)
    assert torch.equal(spoil.crop(ramp, 0.0, 0.0, 1.0), ramp)


def test_a_picture_is_spoiled_as_was_drawn():
    picture = torch.rand(3, 32, 32)
    for index in range(8):
        how = spoilt(index, 0, 1.0)
        wanted = spoil.blur(picture) if how.kind == BLURRED else spoil.crop(picture, how.top, how.left, how.side)
        assert torch.equal(spoil_picture(picture, how), wanted) and wanted.shape == picture.shape
