"""Places for earlier states: what comes back is what was there, and they are packed closely."""

import pytest
import torch

from livetalk.streaming.engine import undo
from livetalk.streaming.engine.undo import host_bytes, places_of


@pytest.mark.parametrize(("host", "staged"), [(False, False), (True, False), (True, True)])
def test_what_comes_back_is_what_was_there(host, staged):
    # Only what is copied on the way may be smaller than its place.
    count = 6 if host and not staged else 4
    whole = torch.randn(4, 9, 3), torch.randn(2, 5).bfloat16()
    like = [torch.empty(4, 6, 3, device="meta"), torch.empty(2, 5, dtype=torch.bfloat16, device="meta")]
    places = places_of(host, like, 3, "cpu", staged)
    saved = []
    for place in range(3):
        values = whole[0][:, place : place + count] + place, whole[1] + place
        saved.append([value.clone() for value in values])
        places.save(place, values)
    for place in (2, 0, 1, 0):
        into = torch.zeros(4, 9, 3), torch.zeros(2, 5).bfloat16()
        places.load(place, (into[0][:, 9 - count :], into[1]))
        places.settle()
        assert torch.equal(into[0][:, 9 - count :], saved[place][0]) and torch.equal(into[1], saved[place][1])
        assert not into[0][:, : 9 - count].any()


def test_pieces_are_packed_without_overlap(monkeypatch):
    monkeypatch.setattr(undo, "SLAB", 1 << 16)
    like = [torch.empty(size, dtype=kind) for size, kind in ((3 << 12, torch.int16), (700, torch.uint8))] * 8
    like.append(torch.empty(3 << 16, dtype=torch.uint8))
    carved = undo._carved(like, pinned=False)
    assert [(one.shape, one.dtype) for one in carved] == [(one.shape, one.dtype) for one in like]
    spans = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in carved)
    assert all(stop <= start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))
    total = sum(one.nbytes for one in like)
    assert total <= host_bytes(like, 1) < 1.4 * total
    # A single small one takes no whole slab.
    assert host_bytes(like[1:2], 1) == 1024
