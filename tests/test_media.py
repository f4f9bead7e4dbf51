"""Pictures and sound in, video with sound out: what is accepted, what is refused and how, and that it stays in sync."""

import errno
import json
import math
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from livetalk import media
from livetalk.media import VideoWriter, check_output, clean_audio, fit_image, read_audio, read_image


def ffmpeg(*arguments: str) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


def tone(seconds: float, rate: int, hertz: float = 440) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def picture() -> Image.Image:
    """Left half red, right half blue, 40 wide and 20 high."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    return Image.fromarray(pixels)


# Pictures


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path, picture, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(path)
    else:
        picture.convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    expected = picture.convert("L").convert("RGB") if mode in ("L", "LA", "I;16") else picture
    if mode not in ("1", "CMYK", "YCbCr"):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1


def test_transparency_is_composited_over_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    pixels[6:, :, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png"))[:, 0, 0]
    assert found.tolist() == [0, 0, 0, 0, 255, 255, 127, 127]


def test_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert (np.asarray(read_image(tmp_path / "a.png")) == 255).all()


@pytest.mark.parametrize(("orientation", "corner"), [(1, "red"), (3, "blue"), (6, "red"), (8, "blue")])
def test_exif_rotation_is_applied(tmp_path, picture, orientation, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == ((40, 20) if orientation in (1, 3) else (20, 40))
    assert image.getpixel((0, 0)) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[corner]


def test_first_frame_of_an_animation(tmp_path, picture):
    picture.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (40, 20))])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0))[0] > 250


def png(picture: Image.Image) -> bytes:
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_bad_pictures_are_refused_in_one_line(tmp_path, picture, monkeypatch):
    whole = png(picture)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.png").write_bytes(whole[:60] + bytes(400) + whole[460:])
    (tmp_path / "large.png").write_bytes(whole)
    for name, complaint in {
        "missing.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "not a picture",
        "half.png": "damaged",
        "damaged.png": "damaged",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=complaint) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    monkeypatch.setattr(media, "MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ValueError, match="too large"):
        read_image(tmp_path / "large.png")


def test_fit_image_covers_and_crops_at_the_centre(picture):
    fitted = fit_image(picture, 16, 16)
    assert fitted.shape == (3, 16, 16) and fitted.dtype == torch.float32
    assert torch.allclose(fitted[:, 8, 1], torch.tensor([1.0, -1, -1]), atol=0.02)
    assert torch.allclose(fitted[:, 8, 14], torch.tensor([-1.0, -1, 1]), atol=0.02)
    same = fit_image(picture, 20, 40)
    assert torch.equal(same, torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000), (127, 129)])
def test_fit_image_takes_any_size(size):
    fitted = fit_image(Image.new("RGB", size, "white"), 32, 48)
    assert fitted.shape == (3, 32, 48) and (fitted == 1).all()


# Sound


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels(tmp_path, rate, channels):
    sound = tone(0.5, rate)
    levels = np.linspace(1, 0, channels)
    soundfile.write(tmp_path / "a.wav", sound[:, None] * levels, rate)
    found = read_audio(tmp_path / "a.wav")
    assert found.dtype == np.float32 and found.shape == (math.ceil(len(sound) * 16000 / rate),)
    expected = tone(0.5, 16000)[: len(found)] * levels.mean()
    assert np.abs(found - expected)[500:-500].max() < 0.01


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "ogg", "flac", "opus", "wma", "mp4", "webm", "aiff", "au"])
def test_any_common_format(tmp_path, suffix):
    soundfile.write(tmp_path / "a.wav", tone(0.6, 44100), 44100)
    codec = {"ogg": ["-c:a", "libvorbis"], "webm": ["-c:a", "libopus"]}.get(suffix, [])
    ffmpeg("-i", str(tmp_path / "a.wav"), *codec, str(tmp_path / f"b.{suffix}"))
    found = read_audio(tmp_path / f"b.{suffix}")
    assert abs(len(found) - 9600) < 2500
    spectrum = np.abs(np.fft.rfft(found[2000:8000]))
    assert abs(spectrum.argmax() * 16000 / 6000 - 440) < 5


def test_sound_of_unknown_length_is_read_whole(tmp_path):
    """Written to a pipe, so that the head could not be filled in."""
    soundfile.write(tmp_path / "a.wav", tone(0.6, 16000), 16000)
    for kind in ("wav", "flac", "aiff"):
        found = ffmpeg("-i", str(tmp_path / "a.wav"), "-f", kind, "pipe:1")
        (tmp_path / f"b.{kind}").write_bytes(found)
        assert len(read_audio(tmp_path / f"b.{kind}")) == 9600


def test_an_mp3_of_any_kind_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(3, 16000), 16000)
    for name, settings in {"vbr": ["-write_xing", "0", "-q:a", "4"], "tagged": ["-q:a", "4"], "even": []}.items():
        ffmpeg("-i", str(tmp_path / "a.wav"), *settings, str(tmp_path / f"{name}.mp3"))
        assert 48_000 <= len(read_audio(tmp_path / f"{name}.mp3")) < 48_000 + 2500


@pytest.mark.parametrize("kind", ["wav", "aiff", "flac"])
def test_a_sound_that_is_cut_off_is_refused(tmp_path, kind):
    soundfile.write(tmp_path / f"a.{kind}", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    whole = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is (cut off|damaged) .*: copy or export it again") as caught:
        read_audio(tmp_path / f"half.{kind}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.webm"])
def test_a_sound_that_may_be_cut_off_is_read_with_a_warning(tmp_path, name, caplog):
    """Where the format leaves open how long a sound is."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48_000), 16000)
    codec = {"a.ogg": ["-c:a", "libvorbis"], "a.webm": ["-c:a", "libopus"]}.get(name, [])
    ffmpeg("-i", str(tmp_path / "a.wav"), *codec, str(tmp_path / name))
    read_audio(tmp_path / name)
    assert not caplog.messages
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert 0 < len(read_audio(tmp_path / name)) < 40_000
    assert len(caplog.messages) == 1 and f"{name} " in caplog.text and "is it cut off?" in caplog.text


@pytest.mark.parametrize("name", ["a.raw", "a.mp3", "a.txt", "a"])
def test_what_a_sound_is_called_says_nothing(tmp_path, name, capfd):
    soundfile.write(tmp_path / "a.wav", tone(0.1, 16000), 16000)
    (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
    assert len(read_audio(tmp_path / name)) == 1600
    (tmp_path / name).write_bytes(b"not a sound" * 2000)
    with pytest.raises(ValueError, match="no sound that can be read"):
        read_audio(tmp_path / name)
    assert capfd.readouterr() == ("", ""), "libraries keep quiet: the complaint is ours to make"


def test_bad_sounds_are_refused_in_one_line(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0], np.float32), 16000, subtype="FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not a sound\n" * 50)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for name, complaint in {
        "missing.wav": "does not exist",
        "empty.wav": "is empty",
        "none.wav": "no sound",
        "nan.wav": "not finite",
        "text.wav": "no sound that can be read",
        "cut.wav": "no sound that can be read",
        "picture.png": "no sound that can be read",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=complaint) as caught:
            read_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_playlist_reaches_for_nothing(tmp_path):
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.mp3\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="no sound that can be read"):
        read_audio(tmp_path / "a.m3u8")


def test_a_fraction_of_a_sample_still_counts():
    """44101 samples at 44.1 kHz last longer than 16 frames, so they make 17."""
    assert len(clean_audio(np.zeros(44101, np.float32), 44100)) == 16001
    assert len(clean_audio(np.zeros(1, np.float32), 48000)) == 1


def test_silence_is_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    assert not read_audio(tmp_path / "a.wav").any()


def test_clean_audio_scales_integers_and_averages_channels():
    found = clean_audio(np.array([[-32768, 0], [16384, 16384]], np.int16), 16000)
    assert found.tolist() == [-0.5, 0.5]
    assert clean_audio(np.array([0, 128, 192], np.uint8), 16000).tolist() == [-1, 0, 0.5]
    with pytest.raises(ValueError, match="rate"):
        clean_audio(np.zeros(4), 0)
    with pytest.raises(ValueError, match="shape"):
        clean_audio(np.zeros((2, 2, 2)), 16000)
    with pytest.raises(ValueError, match="finite"):
        clean_audio(np.array([np.inf, 0]), 16000)


# Video


def frames_of(path) -> np.ndarray:
    raw = ffmpeg("-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, 64, 96, 3)


def write(path, frames: np.ndarray, audio: np.ndarray | None, report: dict | None = None):
    with VideoWriter(path, (64, 96), audio) as writer:
        for part in np.array_split(frames, 3):
            writer.write(part)
        writer.report = report


@pytest.mark.parametrize("count", [1, 7, 33])
def test_picture_and_sound_stay_together(tmp_path, count):
    """A flash and a click on the same frame come back on that frame, and both streams have their exact length."""
    flash = count // 2
    frames = np.full((count, 64, 96, 3), 20, np.uint8)
    frames[flash] = 250
    audio = np.zeros(count * 1000, np.float32)
    audio[flash * 1000 : flash * 1000 + 160] = 0.9
    write(tmp_path / "a.mp4", frames, audio)
    found = frames_of(tmp_path / "a.mp4")
    assert len(found) == count and np.abs(found.astype(int) - frames).max() <= 6
    sound = read_audio(tmp_path / "a.mp4")
    assert abs(len(sound) - len(audio)) <= 16
    assert abs(int(np.argmax(np.abs(sound) > 0.3)) - flash * 1000) <= 16


def test_streams_and_marks(tmp_path):
    write(tmp_path / "a.mp4", np.zeros((4, 64, 96, 3), np.uint8), np.zeros(4000, np.float32), {"seed": 3, "name": "é"})
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(tmp_path / "a.mp4")]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    for mark in ("h264", "yuv420p", "96x64", "16 fps", "aac", "16000 Hz", "mono", "bt709", "Synthetic"):
        assert mark in text
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"seed": 3, "name": "é"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.json"}


def test_without_sound(tmp_path):
    write(tmp_path / "a.mp4", np.zeros((5, 64, 96, 3), np.uint8), None)
    assert len(frames_of(tmp_path / "a.mp4")) == 5


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path):
    old = tmp_path / "a.mp4"
    old.write_bytes(b"old")
    target = tmp_path / "new" / "deeper" / "b.mp4"
    for path in (old, target):
        with pytest.raises(KeyboardInterrupt), VideoWriter(path, (64, 96), None) as writer:
            writer.write(np.zeros((3, 64, 96, 3), np.uint8))
            raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="3 frames were written for a sound of 5"):
        write(target, np.zeros((3, 64, 96, 3), np.uint8), np.zeros(5000, np.float32))
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"old"


def test_nothing_stands_under_the_name_before_the_end(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", (64, 96), None) as writer:
        writer.write(np.zeros((3, 64, 96, 3), np.uint8))
        assert not (tmp_path / "a.mp4").exists()
    assert (tmp_path / "a.mp4").exists()


def test_a_dead_encoder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="ffmpeg"), VideoWriter(tmp_path / "a.mp4", (64, 96), None) as writer:
        writer._process.kill()
        writer._process.wait()
        for _ in range(50):
            writer.write(np.zeros((3, 64, 96, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_by_its_number(tmp_path):
    """So that a command can tell it from a fault of ours."""
    with pytest.raises(OSError, match="No space left") as raised, VideoWriter(tmp_path / "a.mp4", (64, 96)) as writer:
        writer._errors.write(b"[out#0/mp4 @ 0x5] Error closing file: No space left on device\n")
        writer._process.kill()
        writer._process.wait()
        for _ in range(50):
            writer.write(np.zeros((3, 64, 96, 3), np.uint8))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "a.mp4"))
    assert not list(tmp_path.iterdir())


def test_wrong_outputs_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    for name, complaint in {
        "a.avi": r"does not end in \.mp4",
        "a": r"does not end in \.mp4",
        ".": "is a folder",
        "folder.mp4": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            check_output(tmp_path / name)
    for path, complaint in {tmp_path / "file" / "a.mp4": "is a file", "/proc/nowhere/a.mp4": "cannot be"}.items():
        with pytest.raises(ValueError, match=complaint), VideoWriter(path, (64, 96)):
            pass
    with pytest.raises(ValueError, match="even"):
        VideoWriter(tmp_path / "a.mp4", (63, 96))
    with pytest.raises(ValueError, match="do not fit"), VideoWriter(tmp_path / "a.mp4", (64, 96)) as writer:
        writer.write(np.zeros((3, 64, 90, 3), np.uint8))
