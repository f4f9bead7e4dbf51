import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from livetalk.models import audio, text
from livetalk.models.audio import AudioConfig, AudioEncoder
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.layouts import DIT_DIFFUSERS, DIT_TO_DIFFUSERS, Layout, require, vae_diffusers
from livetalk.models.text import TextConfig, TextEncoder
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.vae_names import to_diffusers
from livetalk.models.weights import Entry, entries_of, files_of, load_into, save, save_pieces, tensors_of

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts"
PLAIN_1_3B = DiTConfig(in_channels=16, audio_dim=0)


def published(name, dtype=torch.bfloat16):
    """The tensors of a published file, by name and shape, on the meta device."""
    shapes = json.loads((LAYOUTS / f"{name}.json").read_text())["tensors"]
    return {key: torch.empty(shape, dtype=dtype, device="meta") for key, shape in shapes.items()}


def build(kind, config):
    with torch.device("meta"):
        return kind(config)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


# Published layouts, by name and shape


@pytest.mark.parametrize(
    ("layout", "kind", "config", "rename", "back"),
    [
        ("livetalk-1.3b", WanDiT, DiTConfig.wan_1_3b(), DIT_DIFFUSERS.rename, lambda name: name),
        ("omniavatar-14b-merged", WanDiT, DiTConfig.wan_14b(), DIT_DIFFUSERS.rename, lambda name: name),
        ("wan2.1-t2v-1.3b", WanDiT, PLAIN_1_3B, DIT_DIFFUSERS.rename, lambda name: name),
        ("wan2.1-vae", WanVAE, VAEConfig(), vae_diffusers(VAEConfig()).rename, lambda name: name),
        ("umt5-xxl-encoder", TextEncoder, TextConfig.umt5_xxl(), lambda n: tuple(text.published_names([n])), None),
        (
            "wav2vec2-base-960h",
            AudioEncoder,
            AudioConfig.wav2vec2_base(),
            lambda n: tuple(audio.published_names([n])),
            None,
        ),
    ],
)
def test_published_layouts_round_trip(layout, kind, config, rename, back):
    back = back or {TextEncoder: text.published_name, AudioEncoder: lambda name: name.removeprefix("model.")}[kind]
    tensors = published(layout)
    model = load_into(build(kind, config), tensors, rename=rename, dtype=torch.bfloat16, device="meta")
    state = model.state_dict()
    assert {back(name): value.shape for name, value in state.items()} == {n: v.shape for n, v in tensors.items()}
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_1_3b_layout_with_real_tensors(tmp_path):
    """Written, loaded strictly in bfloat16 and compared bit for bit; loading maps the file and copies nothing."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(2**22, generator=generator).bfloat16()

    def value(name, shape):
        size = torch.Size(shape).numel()
        start = sum(name.encode()) * 1009 % 4096
        return block[start:].repeat(size // (len(block) - start) + 1)[:size].view(shape)

    tensors = published("livetalk-1.3b")
    entries = [
        Entry(name, tuple(t.shape), torch.bfloat16, lambda name=name, t=t: value(name, t.shape))
        for name, t in tensors.items()
    ]
    path = save(tmp_path / "model.safetensors", entries)
    before = _resident_mib()
    dit = load_into(build(WanDiT, DiTConfig.wan_1_3b()), tensors_of(path), dtype=torch.bfloat16)
    grown = _resident_mib() - before
    state = dit.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], value(name, state[name].shape)) for name in state)
    assert grown < 300, f"loading 2.7 GB took {grown} MiB"
    with pytest.raises(
        ValueError, match=r"^33 weights do not fit: .*patch_embedding.weight: expected \[1536, 16, 1, 2, 2\]"
    ):
        load_into(build(WanDiT, PLAIN_1_3B), tensors_of(path))


def _resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_diffusers_names_both_ways():
    for config in (PLAIN_1_3B, DiTConfig.wan_1_3b()):
        ours = build(WanDiT, config).state_dict()
        there = DIT_TO_DIFFUSERS(ours)
        assert DIT_DIFFUSERS(there).keys() == ours.keys() == DIT_DIFFUSERS(ours).keys()
    assert "blocks.0.attn1.to_out.0.bias" in there and "scale_shift_table" in there
    vae = build(WanVAE, VAEConfig()).state_dict()
    names = vae_diffusers(VAEConfig())
    assert names(to_diffusers(vae, VAEConfig())).keys() == vae.keys() == names(vae).keys()


def test_diffusers_own_modules_have_these_names():
    diffusers = pytest.importorskip("diffusers")
    config = DiTConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8, freq_dim=16, audio_dim=0)
    with torch.device("meta"):
        other = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2
        )
    model = load_into(build(WanDiT, config), other.state_dict(), rename=DIT_DIFFUSERS.rename, device="meta")
    assert DIT_TO_DIFFUSERS(model.state_dict()).keys() == other.state_dict().keys()


# Strictness


def test_every_difference_is_listed_in_one_error():
    weights = small().state_dict()
    del weights["0.bias"]
    weights["2.weight"] = torch.zeros(2, 5)
    weights["1.weight"] = torch.zeros(4, dtype=torch.int64)
    weights |= {f"extra.{n}": torch.zeros(n) for n in range(20)}
    with torch.device("meta"):
        model = small()
    with pytest.raises(ValueError) as caught:
        load_into(model, weights)
    message = str(caught.value)
    assert message.startswith("23 weights do not fit: ") and "\n" not in message
    for part in (
        "missing 0.bias [4]",
        "2.weight: expected [2, 4], found [2, 5]",
        "1.weight: expected floating point, found int64",
        *(f"unexpected extra.{n} [{n}]" for n in range(20)),
    ):
        assert part in message
    assert all(p.is_meta for p in model.parameters()), "a refused load changes nothing"


def test_type_and_renaming():
    weights = {f"old.{name}": value for name, value in small().state_dict().items()} | {"old.skip": torch.zeros(1)}
    with torch.device("meta"):
        model = small()
    rename = lambda name: () if name == "old.skip" else (name.removeprefix("old."),)  # noqa: E731
    load_into(model, weights, dtype=torch.bfloat16, rename=rename)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model[0].weight, weights["old.0.weight"].bfloat16())
    with torch.device("meta"):
        model = small()
    with pytest.raises(ValueError, match=r"old.0.weight \(our 0.weight\): expected \[4, 3\], found \[1\]"):
        load_into(model, weights | {"old.0.weight": torch.zeros(1)}, rename=rename)
    load_into(model, weights, rename=lambda n: (n.removeprefix("old."),), ignore=lambda name: name.endswith("skip"))


def test_loading_from_a_file_makes_no_copy_and_leaves_the_file_alone(tmp_path):
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        if path.suffix == ".pth":
            torch.save(small().state_dict(), path)
        else:
            save(path, entries_of(small().state_dict()))
        before = path.read_bytes()
        tensors = dict(tensors_of(path))
        with torch.device("meta"):
            model = small()
        load_into(model, tensors)
        assert model[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
        assert model[0].weight.requires_grad
        with torch.no_grad():
            model[0].weight.add_(1)
        assert path.read_bytes() == before


# Files


def test_saved_files_are_those_of_safetensors(tmp_path):
    weights = {
        "a": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "ids": torch.arange(7),
        "mask": torch.tensor([True, False, True]),
        "strided": torch.randn(4, 6).T,
        "é": torch.randn(2, dtype=torch.float64),
    }
    path = save(tmp_path / "deep" / "w.safetensors", entries_of(weights))
    for found in (load_file(path), dict(tensors_of(path))):
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = save(tmp_path / "w.safetensors", entries_of({"a": torch.ones(2)}))

    def fail():
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        save(path, [*entries_of({"a": torch.zeros(2)}), Entry("b", (1,), torch.float32, fail)])
    assert torch.equal(load_file(path)["a"], torch.ones(2)) and len(list(tmp_path.iterdir())) == 1


def test_pieces_are_below_the_limit_and_load_as_one(tmp_path):
    torch.manual_seed(0)
    weights = {f"w{n}": torch.randn(100, 7 + n) for n in range(20)}
    paths = save_pieces(tmp_path, weights, 9000, torch.bfloat16)
    assert len(paths) > 4 and all(path.stat().st_size <= 9000 for path in paths)
    found = dict(tensors_of(tmp_path))
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in weights.items())
    assert len(save_pieces(tmp_path, weights, 90_000, torch.bfloat16)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights-00000.safetensors"]
    with pytest.raises(ValueError, match=r"w18 \[100, 25\] takes 5000 bytes, a piece holds 5000"):
        save_pieces(tmp_path, weights, 5000, torch.bfloat16)


def test_shards_are_read_through_their_index(tmp_path):
    names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    save_file({"a": torch.ones(2)}, tmp_path / names[0])
    save_file({"b": torch.zeros(2)}, tmp_path / names[1])
    save_file({"c": torch.zeros(2)}, tmp_path / "another.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    for path in (tmp_path, index):
        assert [file.name for file in files_of(path)] == names
        assert dict(tensors_of(path)).keys() == {"a", "b"}
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match=f"lacks {names[1]}, named in m.safetensors.index.json: get the weights"):
        files_of(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is not an index of weights"):
        files_of(tmp_path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_files_that_are_not_whole_are_named_with_the_remedy(tmp_path, name):
    whole = tmp_path / ("whole" + Path(name).suffix)
    state = {"a": torch.ones(1000)}
    save(whole, entries_of(state)) if name.endswith("safetensors") else torch.save(state, whole)
    path = tmp_path / name
    for content in (b"", b"nonsense", whole.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a whole .*: delete it and get the weights with bash"):
            list(tensors_of(path))
    with pytest.raises(ValueError, match="no weights at .*download.sh"):
        list(tensors_of(tmp_path / "missing.safetensors"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder holds no .safetensors"):
        list(tensors_of(tmp_path / "folder"))


def test_a_pickle_of_the_old_format_is_read(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(dict(tensors_of(tmp_path))["a"], torch.arange(3.0))


def test_pickles_that_are_not_weights_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": {"a": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="something else than named tensors"):
        list(tensors_of(path))
    torch.save({"a": Path("x")}, path)
    with pytest.raises(ValueError, match="not a whole file of weights"):
        list(tensors_of(path))


def test_layout_prefers_published_files_and_finds_those_of_diffusers(tmp_path):
    layout = Layout(tmp_path)
    want = tmp_path / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth"
    assert layout.wan("vae") == want
    with pytest.raises(ValueError, match="Wan2.1_VAE.pth is not there: get the weights with bash scripts/download.sh"):
        require(layout.wan("vae"))
    beside = tmp_path / "Wan2.1-T2V-1.3B-Diffusers" / "vae"
    beside.mkdir(parents=True)
    assert layout.wan("vae") == beside
    with pytest.raises(ValueError, match="vae is empty"):
        require(layout.wan("vae"))
    inside = want.with_name("vae")
    inside.mkdir(parents=True)
    assert layout.wan("vae") == inside
    want.write_bytes(b"x")
    assert require(layout.wan("vae")) == want
    index = layout.wan("transformer", "14b")
    assert index.name == "diffusion_pytorch_model.safetensors.index.json" and index.parent.name == "Wan2.1-T2V-14B"
