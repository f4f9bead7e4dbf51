from dataclasses import dataclass

import numpy as np
import pytest
import torch

from livetalk.data.world.appearance import Look
from livetalk.data.world.channels import CHANNEL
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.render import Renderer, rotation, with_gaze

MODEL = FaceModel.tiny()
SIZE = 64


@dataclass(frozen=True)
class Motion:
    expression: np.ndarray
    head_rotation: np.ndarray
    head_shift: np.ndarray
    gaze: np.ndarray


def motion(frames=1, head=(0, 0, 0), shift=(0, 0, 0), gaze=(0, 0), **expression):
    weights = np.zeros((frames, 53), np.float32)
    for name, value in expression.items():
        weights[:, CHANNEL[name]] = value

    def still(values):
        return np.broadcast_to(np.asarray(values, np.float32), (frames, len(values)))

    return Motion(weights, still(head), still(shift), still(gaze))


def wild_motion(frames, seed):
    rng = np.random.default_rng(seed)
    return Motion(
        rng.uniform(0, 0.7, (frames, 53)).astype(np.float32),
        rng.normal(0, 8, (frames, 3)).astype(np.float32),
        rng.normal(0, 0.5, (frames, 3)).astype(np.float32),
        rng.normal(0, 8, (frames, 2)).astype(np.float32),
    )


def look(seed=0):
    return Look.sample(np.random.default_rng(seed), MODEL)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(MODEL, size=SIZE)


def difference(a, b):
    """Mean absolute difference of two frames over the whole, and over the box of the mouth."""
    gap = (a.float() - b.float()).abs().mean(-1)
    return gap.mean().item(), gap[
        SIZE * 50 // 100 : SIZE * 78 // 100, SIZE * 33 // 100 : SIZE * 67 // 100
    ].mean().item()


def test_frames_have_the_promised_form(renderer):
    video = renderer.render([look(0), look(1)], [motion(3), motion(3)])
    assert video.dtype == torch.uint8 and video.shape == (2, 3, SIZE, SIZE, 3)
    assert video.float().std() > 20
    assert torch.equal(video[:, 0], video[:, 1]) and torch.equal(video[:, 0], video[:, 2])
    assert difference(video[0, 0], video[1, 0])[0] > 10


def test_an_open_jaw_shows_at_the_mouth_and_in_the_track(renderer):
    looks, motions = [look(3)] * 3, [motion(), motion(jawOpen=0.4), motion(jawOpen=0.8)]
    still, half, wide = renderer.render(looks, motions)[:, 0]
    openings = renderer.tracks(looks, motions)["mouth_open"][:, 0]
    assert openings[0] < 0.02 and 0.08 < openings[1] < openings[2]
    whole, mouth = difference(still, wide)
    assert mouth > 8 and mouth > 3 * whole
    assert difference(still, half)[1] < mouth


def test_a_blink_lowers_eye_open_and_nothing_else(renderer):
    tracks = renderer.tracks([look(1)] * 2, [motion(), motion(eyeBlink_L=1, eyeBlink_R=1)])
    assert tracks["eye_open"][1, 0] < 0.3 * tracks["eye_open"][0, 0]
    for name in ("mouth_open", "mouth_width"):
        assert tracks[name][0, 0] == tracks[name][1, 0]


def test_lips_narrow_and_widen(renderer):
    motions = [motion(mouthPucker=0.9), motion(), motion(mouthSmile_L=0.9, mouthSmile_R=0.9)]
    narrow, plain, wide = renderer.tracks([look(2)] * 3, motions)["mouth_width"][:, 0]
    assert narrow < 0.8 * plain < plain < 0.9 * wide


def test_tracks_ignore_the_pose(renderer):
    straight = renderer.tracks([look(0)], [motion(2, jawOpen=0.3)])
    turned = renderer.tracks([look(0)], [motion(2, head=(5, 20, -4), shift=(1, 0, 2), jawOpen=0.3)])
    for name, values in straight.items():
        assert values.shape == (1, 2) and values.dtype == np.float32
        np.testing.assert_array_equal(values, turned[name])


def test_pixels_do_not_depend_on_the_batch_or_on_chunks(renderer):
    looks, motions = [look(seed) for seed in range(3)], [wild_motion(5, seed) for seed in range(3)]
    together = renderer.render(looks, motions)
    assert torch.equal(together, renderer.render(looks, motions))
    assert torch.equal(together.flip(0), renderer.render(looks[::-1], motions[::-1]))
    assert torch.equal(together[1:2], renderer.render(looks[1:2], motions[1:2]))
    for frames_at_once in (1, 2, 5):
        other = Renderer(MODEL, size=SIZE, frames_at_once=frames_at_once)
        assert torch.equal(together[:1], other.render(looks[:1], motions[:1]))


def test_the_head_turns_the_way_its_angles_say(renderer):
    nose = np.array([0.0, 0, 1])
    down, left, tilt = rotation(*np.diag([30.0, 30, 30]))
    assert (down @ nose)[1] == pytest.approx(-0.5)
    assert (left @ nose)[0] == pytest.approx(0.5)
    assert (tilt @ np.array([0.0, 1, 0]))[0] == pytest.approx(0.5)


def test_gaze_moves_lids_and_keeps_stronger_weights():
    weights = with_gaze(motion(gaze=(15, 30), eyeLookDown_L=0.8))[0]
    assert weights[CHANNEL["eyeLookDown_L"]] == pytest.approx(0.8)
    assert weights[CHANNEL["eyeLookDown_R"]] == pytest.approx(0.5)
    assert weights[CHANNEL["eyeLookOut_L"]] == weights[CHANNEL["eyeLookIn_R"]] == 1
    assert weights[CHANNEL["eyeLookUp_L"]] == weights[CHANNEL["eyeLookIn_L"]] == 0


def test_gaze_turns_the_eyes(renderer):
    a, b = renderer.render([look(3)] * 2, [motion(gaze=(0, -20)), motion(gaze=(0, 20))])[:, 0]
    gap = (a.float() - b.float()).abs().sum(-1)
    eyes = gap[SIZE // 4 : SIZE // 2]
    assert eyes.max() > 60 and eyes.sum() > 0.7 * gap.sum()


def test_a_small_move_is_a_small_change(renderer):
    """Edges slide instead of flickering: a fifteenth of a pixel moves no pixel far."""
    a, b = renderer.render([look(5)] * 2, [motion(), motion(shift=(0.03, 0, 0))])[:, 0]
    gap = (a.float() - b.float()).abs()
    assert 0 < gap.mean() < 1.5
    assert (gap.amax(-1) > 70).float().mean() < 0.005


def test_wrong_calls_say_what_is_wrong(renderer):
    with pytest.raises(ValueError, match="1 looks and 2 motions"):
        renderer.render([look()], [motion(), motion()])
    with pytest.raises(ValueError, match=r"motions of \[1, 2\] frames"):
        renderer.render([look()] * 2, [motion(1), motion(2)])
    with pytest.raises(ValueError, match="supersample 0"):
        Renderer(MODEL, supersample=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_frames_equal_cpu_frames(renderer):
    looks, motions = [look(seed) for seed in range(2)], [wild_motion(4, seed) for seed in range(2)]
    expected = renderer.render(looks, motions).float()
    found = Renderer(MODEL, size=SIZE, device="cuda").render(looks, motions).cpu().float()
    assert ((found - expected).abs() > 2).float().mean() < 1e-3
