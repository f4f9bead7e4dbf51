"""Eyes that shut alone, on drawn heads whose eyes are known one by one."""

import numpy as np
import pytest
import torch

from livetalk.evaluation.eyes import eye_figures, face_middles, mirrored_halves
from tests.evaluation.toy import SIZE, draw, smooth

ALONE, BOTH = "one eye shut alone (share)", "both eyes shut (share)"


def head(left: np.ndarray, right: np.ndarray, yaw: np.ndarray | float = 0.0) -> torch.Tensor:
    """uint8 [1, T, S, S, 3]: each side drawn with its own eye, put together at the middle of the face."""
    rest = dict.fromkeys(("mouth_open", "pitch", "roll", "smile"), np.zeros(len(left))) | {
        "mouth_width": np.ones(len(left)),
        "yaw": np.zeros(len(left)) + yaw,
    }
    sides = [draw(rest | {"eye_open": eye}, identity=3) for eye in (left, right)]
    middle = np.round(32 + rest["yaw"] * 0.4)[:, None, None, None]
    return torch.from_numpy(np.where(np.arange(SIZE)[:, None] < middle, *sides))[None]


def dark(frames: torch.Tensor) -> torch.Tensor:
    """[B, T]: how many pixels are as blue as the drawn eyes."""
    red, green, blue = frames.long().unbind(-1)
    return ((red < 60) & (green < 70) & (blue > 60)).sum((2, 3)).float()


def test_a_wink_and_a_blink_are_told_apart():
    left, right = np.ones(20), np.ones(20)
    left[4:9] = 0.1  # a wink of five frames
    left[12:14] = right[12:14] = 0.1  # a blink of two
    figures = eye_figures(head(left, right), dark)
    assert figures[ALONE].tolist() == pytest.approx([0.25]) and figures[BOTH].tolist() == pytest.approx([0.1])
    swapped = eye_figures(head(right, left), dark)
    assert {name: value.tolist() for name, value in swapped.items()} == {k: v.tolist() for k, v in figures.items()}
    still = eye_figures(head(np.ones(20), np.ones(20)), dark)
    assert still[ALONE].item() == still[BOTH].item() == 0


def test_the_middle_follows_a_head_that_turns():
    yaw = 10 * (2 * smooth(np.random.default_rng(1), 40, width=12) - 1)
    open_eyes = np.ones(40)
    middles = face_middles(head(open_eyes, open_eyes, yaw))[0]
    assert np.abs(middles.numpy() - (32 + 0.4 * yaw)).max() <= 1.5
    left = open_eyes.copy()
    left[10:20] = 0.1
    assert eye_figures(head(left, open_eyes, yaw), dark)[ALONE].item() == pytest.approx(0.25)


def test_halves_are_symmetric_and_keep_their_own_side():
    frames = head(np.full(3, 0.1), np.ones(3))
    middle = int(face_middles(frames)[0, 0])
    left, right = mirrored_halves(frames)
    reach = min(middle, SIZE - middle)
    for half in (left, right):
        shown = half[..., middle - reach : middle + reach, :]
        assert torch.equal(shown, shown.flip(3))
    assert torch.equal(left[..., :middle, :], frames[..., :middle, :])
    assert torch.equal(right[..., middle:, :], frames[..., middle:, :])
    assert dark(left).max() < dark(right).min()


def test_light_from_one_side_does_not_move_the_middle():
    frames = head(np.ones(2), np.ones(2)).float()
    lit = torch.where(torch.arange(SIZE)[:, None] < 32, frames, (frames * 0.9 + 20)).round().to(torch.uint8)
    assert (face_middles(lit) - face_middles(frames.to(torch.uint8))).abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 0, 8, 8, 3), (0, 4, 8, 8, 3), (1, 4, 8, 1, 3), (4, 8, 8, 3)])
def test_what_holds_no_eyes_is_refused(shape):
    with pytest.raises(ValueError, match="eyes are told apart in uint8"):
        eye_figures(torch.zeros(shape, dtype=torch.uint8), dark)
