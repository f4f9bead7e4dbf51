"""The whole chain with tiny random parts: length, sync, determinism, what is passed on to the sampler."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from livetalk.config import CausalSampling, TeacherSampling
from livetalk.families import CausalSampler, TeacherSampler
from livetalk.geometry import Geometry, latents_of_frames
from livetalk.media import read_audio
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig
from livetalk.pipeline import LiveTalkPipeline, Video, fit_sound, read_request, to_pixels

TINY = Geometry(height=32, width=48, clip_latents=6)
FACE = Image.new("RGB", (50, 40), (200, 120, 90))


def speech(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1


def pipeline(parts: dict, sampler) -> LiveTalkPipeline:
    return LiveTalkPipeline(parts["vae"], parts["audio"], parts["text"], sampler, TINY, notice="knows little")


def teacher(parts: dict, steps: int = 2, **settings) -> TeacherSampler:
    return TeacherSampler(parts["generator"], parts["text"], TINY, TeacherSampling(steps=steps, prefix=2, **settings))


@pytest.fixture
def teacher_pipe(tiny_parts):
    return pipeline(tiny_parts, teacher(tiny_parts))


@pytest.fixture
def causal_pipe(tiny_parts):
    return pipeline(tiny_parts, CausalSampler(tiny_parts["generator"], TINY, CausalSampling(timesteps=(1000.0, 500.0))))


@pytest.mark.parametrize("samples", [1, 1000, 1001, 16000, 33_333])
@pytest.mark.parametrize("which", ["teacher_pipe", "causal_pipe"])
def test_the_video_is_as_long_as_the_sound(request, which, samples):
    video = request.getfixturevalue(which)(FACE, speech(samples), "nods")
    frames = -(-samples // 1000)
    assert video.frames.shape == (frames, 32, 48, 3) and video.frames.dtype == np.uint8
    assert np.array_equal(video.audio[:samples], speech(samples)) and not video.audio[samples:].any()
    assert len(video.audio) == frames * 1000


@pytest.mark.parametrize(("seconds", "frames", "windows"), [(0.3, 5, 1), (5.0625, 81, 1), (12, 192, 3)])
def test_windows_of_the_nano_size(tiny_parts, seconds, frames, windows):
    """The sound is padded to whole windows of 21 latents, each keeping 4 of the one before, and the video trimmed."""
    geometry = Geometry(height=32, width=32)
    sampler = TeacherSampler(tiny_parts["generator"], tiny_parts["text"], geometry, TeacherSampling(steps=1))
    pipe = LiveTalkPipeline(tiny_parts["vae"], tiny_parts["audio"], tiny_parts["text"], sampler, geometry)
    steps = set()
    progress = lambda stage, done, total: steps.add(total) if stage == "denoising" else None  # noqa: E731
    video = pipe(FACE, speech(round(seconds * 16_000)), "nods", progress=progress)
    assert len(video.frames) == frames and len(video.audio) == frames * 1000 and steps == {windows}
    assert sampler.whole(latents_of_frames(frames)) == 21 + 17 * (windows - 1)


@pytest.mark.parametrize("which", ["teacher_pipe", "causal_pipe"])
def test_a_seed_fixes_the_frames(request, which):
    pipe = request.getfixturevalue(which)
    first, again, other = (pipe(FACE, speech(9000), "nods", seed=seed).frames for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first[1:], other[1:])


@pytest.mark.parametrize("which", ["teacher_pipe", "causal_pipe"])
def test_streamed_decode_equals_the_whole(request, tiny_parts, which):
    """What the pipeline decodes piece by piece is what the decoder makes of all the sampler's latents at once."""
    pipe = request.getfixturevalue(which)
    asked = read_request(FACE, speech(20_000), "nods", seed=3)
    frames = np.concatenate(list(pipe.stream(asked)))
    with torch.inference_mode():
        conditions = pipe.conditions(asked, pipe.sampler.whole(latents_of_frames(20)))
        pieces = pipe.sampler(conditions, torch.Generator().manual_seed(3), lambda *_: None)
        whole = to_pixels(tiny_parts["vae"].decode(torch.cat(list(pieces), dim=2)))
    assert np.abs(frames.astype(int) - whole[:20]).max() <= 1


def test_another_decoder_makes_the_frames(causal_pipe):
    """The VAE encodes the picture, so the latents are the same; the report says who decoded."""
    torch.manual_seed(0)
    small = SmallDecoder(SmallDecoderConfig(dim=8, mixes=1, widths=(8, 4, 4))).eval()
    own = causal_pipe
    pipe = LiveTalkPipeline(own.vae, own.audio, own.text, own.sampler, own.geometry, decoder=small)
    seen, other = (one(FACE, speech(20_000), "nods") for one in (own, pipe))
    assert seen.frames.shape == other.frames.shape and not np.array_equal(seen.frames, other.frames)
    assert (seen.report["decoder"], other.report["decoder"]) == ("vae", "small")


def test_later_sound_does_not_change_earlier_blocks(causal_pipe):
    """The causal student hears at most the look-ahead beyond a block."""
    sound = speech(40_000)
    changed = np.concatenate([sound[:30_000], sound[30_000:] * 3])
    first, second = (causal_pipe(FACE, audio, "nods").frames for audio in (sound, changed))
    assert np.array_equal(first[:21], second[:21]) and not np.array_equal(first, second)


def test_conditions_reach_the_sampler_whole(teacher_pipe):
    asked = read_request(FACE, speech(30_000), "nods")
    wanted = latents_of_frames(30)
    conditions = teacher_pipe.conditions(asked, teacher_pipe.sampler.whole(wanted))
    assert conditions.audio.shape[1] == 10 and conditions.reference.shape == (1, 16, 1, 4, 6)


@pytest.mark.parametrize(("latents", "whole"), [(1, 6), (6, 6), (7, 10), (10, 10), (11, 14)])
def test_the_teacher_makes_whole_windows(tiny_parts, latents, whole):
    assert teacher(tiny_parts).whole(latents) == whole


@pytest.mark.parametrize(("latents", "whole"), [(1, 3), (3, 3), (4, 6)])
def test_the_student_makes_whole_blocks(tiny_parts, latents, whole):
    assert CausalSampler(tiny_parts["generator"], TINY, CausalSampling()).whole(latents) == whole


def test_progress_and_timings(teacher_pipe):
    seen, timings = [], {}
    list(teacher_pipe.stream(read_request(FACE, speech(30_000), "nods"), lambda *step: seen.append(step), timings))
    steps = [done for stage, done, total in seen if stage == "denoising" and total == 4]
    assert steps == sorted(steps) and set(steps) == set(range(5))
    assert seen[-1] == ("decoding", 30, 30)
    assert set(timings) == {"encoding", "denoising", "decoding"} and min(timings.values()) > 0


def test_one_notice_for_foreign_pictures(teacher_pipe, caplog):
    teacher_pipe(FACE, speech(2000), "nods")
    assert [record.getMessage() for record in caplog.records].count("knows little") == 1


# Requests


def test_duration_cuts_and_pads():
    sound = np.ones(2500, np.float32)
    assert fit_sound(sound).tolist() == [1] * 2500 + [0] * 500
    assert fit_sound(sound, 1500).tolist() == [1] * 1500 + [0] * 500
    assert fit_sound(sound, 4000).tolist() == [1] * 2500 + [0] * 1500
    assert read_request(FACE, sound, "nods", duration=2.0).frames == 32
    assert read_request(FACE, sound, "nods", duration=0.07).frames == 2


def test_all_kinds_of_inputs(tmp_path):
    FACE.save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", speech(8000), 8000)
    pixels = np.array(FACE)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), FACE, pixels, FACE.convert("RGBA")):
        assert np.array_equal(np.array(read_request(image, speech(1000), "nods").image), pixels)
    for audio in (tmp_path / "a.wav", (speech(8000), 8000), ((speech(8000) * 32767).astype(np.int16), 8000)):
        assert read_request(FACE, audio, "nods").frames == 16
    found = read_request(FACE, speech(1000), "nods", seed=np.int64(7), duration=np.float32(0.5))
    assert found.seed == 7 and type(found.seed) is int and found.frames == 8


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"seed": 2**63}, "seed"),
        ({"seed": True}, "seed True"),
        ({"prompt": "nods\udce9"}, "no letters: write it in UTF-8"),
        ({"audio": np.zeros((2, 1000), np.float32)}, "1000 channels .*: give .samples, channels."),
        ({"audio": np.zeros(1000, bool)}, "is of bool"),
        ({"duration": 0}, "duration 0"),
        ({"duration": -1.0}, "duration -1"),
        ({"duration": float("nan")}, "duration nan"),
        ({"duration": float("inf")}, "duration inf"),
        ({"duration": 1e9}, "over 12 hours"),
        ({"image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"image": np.zeros((4, 4, 3))}, "float64"),
        ({"audio": "nowhere.wav"}, "nowhere.wav does not exist"),
        ({"audio": np.zeros(0, np.float32)}, "no sound"),
        ({"audio": np.full(10, np.nan)}, "not finite"),
    ],
)
def test_mistakes_are_said_in_one_line(changed, complaint):
    good = {"image": FACE, "audio": speech(1000), "prompt": "nods"}
    with pytest.raises(ValueError, match=complaint) as caught:
        read_request(**{**good, **changed})
    assert "\n" not in str(caught.value)


# Video


def test_a_video_saves_and_shows_itself(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 48, 3)).astype(np.uint8)
    video = Video(frames, speech(8000), {"seed": 5})
    path = video.save(tmp_path / "a.mp4")
    assert len(read_audio(path)) == 8000 and (tmp_path / "a.json").exists()
    html = video._repr_html_()
    assert html.startswith("<video controls") and 'src="data:video/mp4;base64,' in html
    assert repr(video) == "Video(8 frames of 48x32, 0.50 s)"


def test_pixels_are_clamped():
    video = torch.tensor([-3.0, -1, 0, 1, 3]).reshape(1, 1, 5, 1, 1).expand(-1, 3, -1, -1, -1)
    assert to_pixels(video)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_pipeline_in_bfloat16_renders(tiny_family):
    """The default on a GPU: every part computes in bfloat16, the sound included."""
    from livetalk.config import TeacherSampling
    from livetalk.families import load_pipeline, run_of

    settings = {"precision": "bfloat16", "device": "cpu", "geometry": Geometry(height=64, width=64)}
    run = run_of(tiny_family, {**settings, "teacher": TeacherSampling(steps=1)})
    video = load_pipeline(run)(Image.new("RGB", (64, 64)), np.zeros(3000, np.float32), "nods")
    assert video.frames.shape == (3, 64, 64, 3)
