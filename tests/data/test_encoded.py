import copy
import json

import pytest
import torch
from torch import nn

from livetalk.data import encoded
from livetalk.data.encoded import encode_excerpt, fingerprint, load, read_shard, shard_path, shards, write

SOURCE = {"world": {"seed": 0, "sizes": (1, 2)}}


class Maker:
    """Clips whose numbers are their index; remembers what was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, start, stop):
        self.asked.append((start, stop))
        index = torch.arange(start, stop, dtype=torch.bfloat16)
        latents, audio = index[:, None, None, None, None].expand(-1, 16, 2, 2, 2), index[:, None, None].expand(-1, 5, 3)
        return {"latents": latents, "audio": audio}, [f"clip {n}" for n in range(start, stop)]


def test_clips_come_back_in_order_with_their_prompts(tmp_path):
    write(tmp_path, 10, 4, SOURCE, Maker())
    clips = load(tmp_path)
    assert len(clips) == 10 and clips.prompts == [f"clip {n}" for n in range(10)]
    assert clips.latents.shape == (10, 16, 2, 2, 2) and clips.audio.shape == (10, 5, 3)
    assert torch.equal(clips.latents[:, 0, 0, 0, 0], torch.arange(10).bfloat16())
    assert torch.equal(clips.audio[:, 0, 0], torch.arange(10).bfloat16())
    assert clips.to("cpu").latents.dtype == torch.bfloat16


def test_parts_share_the_shards_and_together_make_the_whole(tmp_path):
    makers = [Maker() for _ in range(3)]
    for number, maker in enumerate(makers):
        write(tmp_path, 10, 2, SOURCE, maker, part=(number, 3))
    assert [maker.asked for maker in makers] == [[(0, 2), (6, 8)], [(2, 4), (8, 10)], [(4, 6)]]
    assert load(tmp_path).prompts == [f"clip {n}" for n in range(10)]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    def dies(start, stop):
        if start:
            raise KeyboardInterrupt
        return Maker()(start, stop)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 10, 4, SOURCE, dies)
    maker = Maker()
    write(tmp_path, 10, 4, SOURCE, maker)
    assert maker.asked == [(4, 8), (8, 10)]
    write(tmp_path, 10, 4, SOURCE, maker)
    assert len(maker.asked) == 2, "a complete folder is not touched"
    assert len(load(tmp_path)) == 10


def test_what_a_killed_process_left_is_never_read_and_is_removed(tmp_path):
    write(tmp_path, 4, 4, SOURCE, Maker())
    whole = {path.name for path in tmp_path.iterdir()}
    left = tmp_path / f".{shard_path(tmp_path, 0).name}.123.partial"
    left.write_bytes(b"half")
    assert len(load(tmp_path)) == 4
    write(tmp_path, 4, 4, SOURCE, Maker())
    assert {path.name for path in tmp_path.iterdir()} == whole


def test_a_shard_that_fails_to_be_written_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "save_file", lambda tensors, path, metadata: path.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, 4, 4, SOURCE, Maker())
    assert not shard_path(tmp_path, 0).exists()


@pytest.mark.parametrize(
    "count, shard, source, named",
    [(12, 4, SOURCE, "count"), (10, 5, SOURCE, "shard"), (10, 4, {"world": {"seed": 1, "sizes": (1, 2)}}, "world")],
)
def test_clips_of_other_settings_are_refused_by_name_and_left_alone(tmp_path, count, shard, source, named):
    write(tmp_path, 10, 4, SOURCE, Maker())
    with pytest.raises(ValueError, match=rf"other settings \({named}\): remove it"):
        write(tmp_path, count, shard, source, Maker())
    assert len(load(tmp_path)) == 10 and json.loads((tmp_path / encoded.INDEX).read_text())["count"] == 10


def test_missing_shards_are_named(tmp_path):
    write(tmp_path, 10, 2, SOURCE, Maker(), part=(0, 2))
    with pytest.raises(ValueError, match=r"lacks 2 of its 5 shards \(number 1, 3\): run bash scripts/train_teacher.sh"):
        load(tmp_path)
    shard_path(tmp_path, 77).write_bytes(b"of another run")
    with pytest.raises(ValueError, match="lacks 2 of its 5"):
        shards(tmp_path)


def test_the_first_clips_can_be_read_before_all_are_there(tmp_path):
    write(tmp_path, 10, 2, SOURCE, Maker(), part=(0, 2))
    assert encoded.first_shards(tmp_path, 2) == [shard_path(tmp_path, 0)]
    with pytest.raises(ValueError, match=r"lacks 1 of its 2 shards \(number 1\)"):
        encoded.first_shards(tmp_path, 3)
    with pytest.raises(ValueError, match="11 clips wanted of .*, which is to hold 10"):
        encoded.first_shards(tmp_path, 11)


def test_a_folder_without_clips_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="holds no clips: run bash scripts/train_teacher.sh"):
        load(tmp_path)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_is_not_one_is_refused(tmp_path, part):
    with pytest.raises(ValueError, match="parts count from 0"):
        write(tmp_path, 4, 2, SOURCE, Maker(), part)


class Encoder(nn.Module):
    def __init__(self, config="a"):
        super().__init__()
        torch.manual_seed(0)
        self.config = config
        self.net = nn.Linear(3, 3)
        self.register_buffer("count", torch.tensor(1))


def test_a_fingerprint_depends_on_every_bit_of_the_weights_and_on_the_config():
    known = fingerprint(Encoder(), Encoder())
    assert known == fingerprint(Encoder(), Encoder())
    swapped = Encoder()
    with torch.no_grad():
        swapped.net.weight.copy_(swapped.net.weight.flip(0))
    nudged = Encoder()
    with torch.no_grad():
        nudged.net.bias[0] = torch.nextafter(nudged.net.bias[0], torch.tensor(9.0))
    counted = Encoder()
    counted.count += 1
    others = [swapped, nudged, counted, Encoder("b"), copy.deepcopy(Encoder()).bfloat16()]
    prints = {known, *(fingerprint(Encoder(), other) for other in others)}
    assert len(prints) == 1 + len(others)
    assert fingerprint(swapped, Encoder()) != fingerprint(Encoder(), swapped)


def test_weights_laid_out_otherwise_in_memory_have_the_same_fingerprint():
    turned = Encoder()
    turned.net.weight = nn.Parameter(turned.net.weight.detach().t().contiguous().t())
    assert fingerprint(turned) == fingerprint(Encoder())


def test_an_excerpt_is_what_the_encoders_make_of_it(tiny_parts):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 9, 32, 32, 3), generator=generator, dtype=torch.uint8)
    pcm = 0.1 * torch.randn(2, 9000, generator=generator)
    vae, audio = tiny_parts["vae"], tiny_parts["audio"]
    made = encode_excerpt(frames, pcm, vae, audio, torch.float32)
    with torch.no_grad():
        latents = vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1)
        alone = vae.encode(frames[:, :1].permute(0, 4, 1, 2, 3) / 127.5 - 1)
        assert torch.allclose(made["audio"].float(), audio.features(pcm, 9), rtol=0.01, atol=0.01)
    assert made["latents"].shape == (2, 16, 3, 4, 4) and made["latents"].dtype == torch.bfloat16
    assert torch.allclose(made["latents"].float(), latents, rtol=0.01, atol=0.01)
    assert torch.allclose(made["latents"][:, :, :1].float(), alone, rtol=0.01, atol=0.01), "latent 0 is the reference"
    low = encode_excerpt(frames, pcm, vae, audio, torch.bfloat16)
    assert torch.allclose(low["latents"].float(), latents, atol=0.05 * latents.abs().max().item())


def test_a_shard_holds_any_tensors_and_its_prompts(tmp_path):
    def make(start, stop):
        return {"frames": torch.full((stop - start, 2), start, dtype=torch.uint8)}, ["ä"] * (stop - start)

    write(tmp_path, 3, 2, {}, make)
    tensors, prompts = read_shard(shard_path(tmp_path, 1))
    assert tensors["frames"].tolist() == [[2, 2]] and prompts == ["ä"]


@pytest.mark.parametrize("older", [True, False])
def test_when_lids_are_shut_is_known_of_a_folder_if_it_is_of_all_its_shards(tmp_path, older):
    def make(start, stop):
        tensors = {"latents": torch.zeros(stop - start, 16, 2, 1, 1), "audio": torch.zeros(stop - start, 5, 1)}
        if start or not older:
            tensors["shut"] = torch.tensor([[False, True]]).expand(stop - start, -1)
        return tensors, [""] * (stop - start)

    write(tmp_path, 4, 2, {}, make)
    clips = load(tmp_path).to("cpu")
    assert len(clips) == 4 and (clips.shut is None if older else clips.shut.tolist() == [[False, True]] * 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "is not JSON"), (b"[]", "no mapping but a list"), (b"{}", "lacks count, size"), (b"\xff", "not UTF-8")],
)
def test_an_index_that_is_none_is_named(tmp_path, content, reason):
    (tmp_path / encoded.INDEX).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / encoded.INDEX}.*{reason}"):
        encoded.description_of(tmp_path)
