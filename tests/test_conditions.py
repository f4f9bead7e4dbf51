import pytest
import torch

from livetalk.conditions import Conditions, group_audio


def clip(latents=6):
    audio = torch.arange(1.0, 4 * latents - 2).reshape(1, -1, 1)
    return Conditions(torch.ones(1, 3, 2), torch.ones(1, 16, 1, 4, 4), group_audio(audio))


def test_groups_follow_the_published_pattern():
    assert clip(3).audio[0].tolist() == [[1, 1, 1, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    with pytest.raises(ValueError, match="4F - 3"):
        group_audio(torch.zeros(1, 4, 1))


def test_blocks_tile_the_clip():
    whole = clip()
    parts = [whole.block(start, 3) for start in (0, 3)]
    assert torch.equal(torch.cat([part.audio for part in parts], 1), whole.audio)
    assert torch.equal(torch.cat([part.mask(3) for part in parts]), whole.mask(6))
    assert whole.mask(6).tolist() == [0, 1, 1, 1, 1, 1]
    assert parts[1].block(4, 2).audio[0, 0, 0] == whole.audio[0, 4, 0]


def test_a_block_beyond_the_sound_is_refused():
    with pytest.raises(ValueError, match="asked for 5 to 7"):
        clip().block(5, 3)


def test_null_has_the_same_image_no_sound_and_the_negative_prompt():
    null = clip().null(torch.zeros(1, 3, 2))
    assert not null.audio.any() and not null.text.any() and null.reference.all()
    assert clip().without_audio().text.all()
