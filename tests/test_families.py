"""Where the parts of the published models are looked for, and that what is missing is named with its remedy."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from livetalk import config, families, parts
from livetalk.config import InferenceRun
from livetalk.families import PUBLISHED, parts_of, require_weights
from livetalk.models.layouts import Layout
from livetalk.models.small_decoder import SmallDecoder, SmallDecoderConfig, TrueColours
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.models.vae_names import to_diffusers


def run_of(model: str) -> InferenceRun:
    return InferenceRun(model=model, sampler=PUBLISHED[model].sampler)


def touch(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("model", "file", "remedy"),
    [
        ("livetalk-1.3b", "LiveTalk-1.3B-V0.1/model.safetensors", "bash scripts/download.sh"),
        ("livetalk-1.3b-ode", "ODE_init/model.safetensors", "put the ODE student"),
        ("omniavatar-1.3b", "OmniAvatar_merged/OmniAvatar-1.3B.safetensors", "bash scripts/merge_lora.sh --size 1.3b"),
        ("omniavatar-14b", "OmniAvatar_merged/OmniAvatar-14B.safetensors", "bash scripts/merge_lora.sh --size 14b"),
    ],
)
def test_what_is_missing_is_named(tmp_path, model, file, remedy):
    layout = Layout(tmp_path)
    with pytest.raises(ValueError, match="bash scripts/download.sh") as caught:
        require_weights(run_of(model), layout)
    message = str(caught.value)
    wanted = ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl", "wav2vec2", file)
    assert all(name in message for name in wanted) and remedy in message and "\n" not in message
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"):
        touch(tmp_path / "Wan2.1-T2V-1.3B" / name)
    touch(tmp_path / "wav2vec2" / "model.safetensors")
    with pytest.raises(ValueError, match=remedy) as caught:
        require_weights(run_of(model), layout)
    assert file in str(caught.value) and "Wan2.1_VAE" not in str(caught.value)
    touch(tmp_path / file, "")
    with pytest.raises(ValueError, match=remedy):
        require_weights(run_of(model), layout)
    touch(tmp_path / file)
    require_weights(run_of(model), layout)


def test_parts_in_the_layout_of_diffusers_are_found(tmp_path):
    base = tmp_path / "Wan2.1-T2V-1.3B-Diffusers"
    for name in ("vae", "text_encoder", "tokenizer"):
        (base / name).mkdir(parents=True)
    found = {part.name: part for part in parts_of(run_of("livetalk-1.3b"), Layout(tmp_path))}
    assert found["vae"].source == base / "vae" and found["text"].paths == [base / "text_encoder", base / "tokenizer"]


@pytest.mark.parametrize("published", [True, False])
def test_the_autoencoder_is_read_under_either_names(tmp_path, monkeypatch, published):
    """As Wan2.1_VAE.pth and as diffusers' vae/, through the part that inference loads."""
    small = VAEConfig(base_dim=4, res_blocks=1)
    torch.manual_seed(0)
    vae = WanVAE(small)
    base = tmp_path / "Wan2.1-T2V-1.3B"
    base.mkdir()
    if published:
        torch.save(vae.state_dict(), base / "Wan2.1_VAE.pth")
    else:
        (base / "vae").mkdir()
        state = {name: value.contiguous() for name, value in to_diffusers(vae.state_dict(), small).items()}
        save_file(state, base / "vae" / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(families, "VAEConfig", lambda: small)
    part = parts_of(run_of("livetalk-1.3b"), Layout(tmp_path))[0]
    loaded = part.load()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in vae.state_dict().items())
    assert torch.equal(loaded.latents_mean, vae.latents_mean) and not loaded.conv1.weight.requires_grad


def test_a_part_of_a_family(tiny_family, tmp_path):
    assert parts.load_part(tiny_family, "teacher").config.dim == 24
    with pytest.raises(ValueError, match=r"no weights for vae, teacher in .*: .*train_nano.sh and .*train_teacher.sh"):
        parts.require_parts(tmp_path, ["vae", "teacher"])
    for text, complaint in (("{", "is not JSON"), ("[]", "does not describe"), ('{"dim": 1}', "does not describe")):
        touch(tmp_path / "teacher" / "config.json", text)
        with pytest.raises(ValueError, match=complaint):
            parts.family_part(tmp_path, "teacher")


def test_export_and_load_again(tmp_path):
    small = VAEConfig(base_dim=4, res_blocks=1)
    vae = WanVAE(small)
    card = parts.Card(data_seed=3, steps=7, figures={"psnr": 30.0}, settings=config.flat(InferenceRun()))
    touch(tmp_path / "vae" / "tokenizer.json", "{}")
    touch(tmp_path / "vae" / "old.safetensors")
    folder = parts.export_part(tmp_path, "vae", small, vae.state_dict(), card)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "card.json", "tokenizer.json", "weights-00000.safetensors")
    }
    assert json.loads((folder / "card.json").read_text())["steps"] == 7
    loaded = parts.load_part(tmp_path, "vae")
    for name, value in vae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(torch.bfloat16).float())


def test_the_small_decoder_serves_cpus(tiny_family, tmp_path):
    """Where a family has it, unless the run says otherwise; the picture is encoded by the VAE all the same."""
    family = shutil.copytree(tiny_family, tmp_path / "family")
    run = InferenceRun(model=str(family), sampler="teacher")
    names = ["vae", "audio", "text", "generator"]
    assert [part.name for part in parts_of(run)] == names
    with pytest.raises(ValueError, match="no weights for small_decoder .*train_nano.sh"):
        parts_of(replace(run, decoder="small"))
    sizes = SmallDecoderConfig(dim=8, mixes=1, widths=(8, 4, 4))
    decoder = SmallDecoder(sizes)
    parts.export_part(family, "small_decoder", sizes, decoder.state_dict(), parts.Card(0, 0))
    for choice, small in (("auto", True), ("small", True), ("vae", False)):
        chosen = replace(run, decoder=choice, device="cpu")
        assert ("small_decoder" in [part.name for part in parts_of(chosen)]) is small
        pipe = families.load_pipeline(chosen)
        assert isinstance(pipe.decoder, TrueColours if small else WanVAE) and isinstance(pipe.vae, WanVAE)
    with pytest.raises(ValueError, match="decoder 'tiny' is not known: use auto or vae or small"):
        parts_of(replace(run, decoder="tiny"))
    with pytest.raises(ValueError, match="livetalk-1.3b has no small decoder"):
        parts_of(replace(run_of("livetalk-1.3b"), decoder="small"), Layout(tmp_path))


def test_a_part_leans_towards_what_it_was_trained_from(tmp_path, tiny_family):
    family = tmp_path / "family"
    for name in ("teacher", "student"):
        shutil.copytree(tiny_family / name, family / name)
        card = {"data_seed": 3, "steps": 7, "figures": {"old": 1.0}, "settings": {"run": "train_dmd"}}
        touch(family / name / "card.json", json.dumps(card))
    ends = [parts.load_part(family, name).state_dict() for name in ("student", "teacher")]
    parts.lean_part(family, "student", "teacher", 0.25, {"A/V correlation": 0.5})
    middle = parts.load_part(family, "student").state_dict()
    for key, value in middle.items():
        assert torch.allclose(value, 0.75 * ends[0][key] + 0.25 * ends[1][key], atol=0.02)  # it is kept in bfloat16
    assert any(not torch.equal(value, ends[0][key]) for key, value in middle.items())
    told = json.loads((family / "student" / "card.json").read_text())
    assert told == card | {
        "figures": {"A/V correlation": 0.5},
        "settings": {"run": "train_dmd", "leans": {"teacher": 0.25}},
    }
    shutil.copytree(family / "student", family / "student_ode")
    parts.lean_part(family, "student", "student_ode", 0.5, {})
    parts.lean_part(family, "student", "teacher", 0.2, {})
    leans = json.loads((family / "student" / "card.json").read_text())["settings"]["leans"]
    assert leans == pytest.approx({"teacher": 0.8 * 0.5 * 0.25 + 0.2, "student_ode": 0.8 * 0.5}), "of the end's weights"


def test_a_part_learns_what_another_learnt_since(tmp_path, tiny_family):
    family, earlier = tmp_path / "family", tmp_path / "earlier"
    for name, folder, start in (("teacher", family, 1.0), ("student", family, 3.0), ("teacher", earlier, 0.5)):
        part = parts.load_part(tiny_family, name)
        weights = {key: torch.full_like(value, start) for key, value in part.state_dict().items()}
        parts.export_part(folder, name, part.config, weights, parts.Card(3, 7, {}, {"leans": {"before": 0.25}}))
    before = f"{earlier}/teacher"
    parts.lean_part(family, "student", "teacher", 0.5, {}, since=before)
    found = parts.load_part(family, "student").state_dict()
    assert all((value == 3 + 0.5 * (1 - 0.5)).all() for value in found.values()), "nothing of its own is taken back"
    leans = parts.card_of(family / "student")["settings"]["leans"]
    assert leans == {"before": 0.25, f"teacher since {before}": 0.5}
    parts.lean_part(family, "student", before, 0.5, {})
    assert all((value == (3.25 + 0.5) / 2).all() for value in parts.load_part(family, "student").state_dict().values())


def test_leaning_by_no_share_or_towards_another_network_is_refused(tmp_path, tiny_family):
    family = shutil.copytree(tiny_family, tmp_path / "family")
    with pytest.raises(ValueError, match=r"share=1.5: give a share from 0"):
        parts.lean_part(family, "student", "teacher", 1.5, {})
    with pytest.raises(ValueError, match="vae of .* is another network than student"):
        parts.lean_part(family, "student", "vae", 0.1, {})
    with pytest.raises(ValueError, match=f"{family}/vae is another network than student"):
        parts.lean_part(family, "student", "teacher", 0.1, {}, since=f"{family}/vae")
    with pytest.raises(ValueError, match="teacher_old: a part is vae, "):
        parts.lean_part(family, "student", "runs/before/teacher_old", 0.1, {})
    with pytest.raises(ValueError, match="student of .* has no card.json"):
        parts.lean_part(family, "student", "teacher", 0.1, {})
