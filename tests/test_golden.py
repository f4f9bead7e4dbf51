"""Tensors recorded from the published code (tests/golden/README.md). One test a file, none skipped.

LIVETALK_GOLDEN names another folder with cases of the same kinds: the kind is the file name up to the first "-",
every size comes from the file's own metadata.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from livetalk import flow
from livetalk.conditions import Conditions, group_audio
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig, KVCache

FOLDER = Path(os.environ.get("LIVETALK_GOLDEN") or Path(__file__).parent / "golden")
CASES = sorted(FOLDER.glob("*.safetensors"))


class Case:
    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.settings = json.loads((file.metadata() or {}).get("settings", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.weights, self.inputs, self.outputs = (
            {name[len(part) :]: value for name, value in tensors.items() if name.startswith(part)}
            for part in ("w.", "in.", "out.")
        )

    def check(self, name: str, value: torch.Tensor, tolerance: float) -> None:
        want = self.outputs[name]
        assert value.shape == want.shape
        error = (value.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}"


def _dit(case: Case) -> WanDiT:
    dit = WanDiT(DiTConfig.from_published(case.settings))
    dit.load_state_dict(case.weights, strict=True)
    return dit.eval()


def _conditions(case: Case) -> Conditions:
    """The published input y is the image's latent repeated, then the mask; ours keeps the latent once."""
    latent, mask = case.inputs["y"][:, :16, :1], case.inputs["y"][:, 16:]
    conditions = Conditions(case.inputs["context"], latent, group_audio(case.inputs["audio"]))
    assert torch.equal(case.inputs["y"][:, :16], latent.expand_as(case.inputs["y"][:, :16]))
    assert torch.equal(mask[0, 0, :, 0, 0], conditions.mask(mask.shape[2]))
    return conditions


def teacher_dit(case: Case) -> None:
    flow_ = _dit(case)(case.inputs["x"], case.inputs["timestep"], _conditions(case), FullAttention())
    case.check("flow", flow_, 2e-6)


def causal_dit_parallel(case: Case) -> None:
    dit, conditions = _dit(case), _conditions(case)
    for masked in (True, False):
        attend = BlockCausal(case.settings["frames_per_block"], masked=masked)
        case.check("flow", dit(case.inputs["x"], case.inputs["timestep"], conditions, attend), 2e-6)


def causal_dit_stream_full(case: Case) -> None:
    settings, x, timesteps = case.settings, case.inputs["x"], case.inputs["timesteps"].tolist()
    dit, conditions, block = _dit(case), _conditions(case), case.settings["frames_per_block"]
    frames = block * settings["blocks"]
    window = settings["window_frames"] if settings["window_frames"] > 0 else frames
    cache = KVCache(
        CacheConfig(window, settings["sink_frames"], block, positions="absolute"),
        layers=dit.config.layers,
        heads=dit.config.heads,
        head_dim=dit.config.head_dim,
        rows=x.shape[-2] // 2,
        columns=x.shape[-1] // 2,
        batch=x.shape[1],
    )
    passes = []
    for start in range(0, frames, block):
        prepared = dit.prepare(conditions.block(start, block), block, timesteps)
        cache.advance()
        for timestep in timesteps:
            passes.append(dit(x[len(passes)], timestep, prepared, cache))
    case.check("flow", torch.stack(passes), 2e-6)


causal_dit_stream_sink = causal_dit_stream_full


def wan_vae(case: Case) -> None:
    from livetalk.models.vae import VAEConfig, WanVAE

    vae = WanVAE(VAEConfig.from_published(case.settings))
    vae.load_state_dict(case.weights, strict=True)
    case.check("encoded", vae.encode(case.inputs["clip"]), 1e-5)
    case.check("decoded", vae.decode(case.inputs["latent"]), 1e-5)


def umt5_encoder(case: Case) -> None:
    from livetalk.models.text import TextConfig, TextEncoder

    encoder = TextEncoder(TextConfig.from_published(case.settings))
    encoder.load_published(case.weights)
    case.check("context", encoder.features(case.inputs["ids"], case.inputs["mask"]), 2e-6)


def wav2vec2_features(case: Case) -> None:
    from livetalk.models.audio import AudioConfig, AudioEncoder

    encoder = AudioEncoder(AudioConfig.from_published(case.settings))
    encoder.load_published(case.weights)
    # The waveform is fed as it is: its length and seq_len are settings of their own.
    features = encoder.resampled(case.inputs["waveform"], frames=case.settings["seq_len"])
    case.check("features", features, 2e-6)


def flow_match_schedule(case: Case) -> None:
    for name in case.outputs:
        kind, count = name.rsplit("_", 1)
        shift = case.settings["shift"]
        sigmas = flow.shifted_sigmas(int(count), shift)
        value = {
            "sigmas": sigmas,
            "timesteps": 1000 * sigmas,
            "training_weights": flow.training_weights(int(count), shift),
        }
        case.check(name, value[kind], 2e-6)


def dmd_gradient_joint(case: Case) -> None:
    from livetalk.training.losses import dmd_gradient, dmd_loss

    real = (case.inputs[f"real_x0_{part}"] for part in ("uncond", "text_only", "cond"))
    # The published joint form adds its scale on top of the conditional prediction: its s is our s + 1.
    extra = 1 if case.path_kind == "dmd_gradient_joint" else 0
    scales = (case.settings["text_scale"] + extra, case.settings["audio_scale"] + extra)
    gradient = dmd_gradient(case.inputs["generated"], case.inputs["fake_x0"], flow.guide(*real, *scales))
    case.check("gradient", gradient, 2e-6)
    case.check("loss", dmd_loss(case.inputs["generated"], gradient).reshape(1), 2e-6)


dmd_gradient_split = dmd_gradient_joint


def critic_loss(case: Case) -> None:
    from livetalk.training.losses import critic_flow_loss, critic_input

    inputs = {name: value.transpose(1, 2) for name, value in case.inputs.items() if name != "timestep"}
    # The published code looks a timestep up as the nearest of the 1000 shifted levels; losses take the level itself.
    levels = flow.shifted_sigmas(1000)
    timestep = case.inputs["timestep"].double()
    sigma = levels[(1000 * levels - timestep[..., None]).abs().argmin(-1)]
    noisy = critic_input(inputs["generated"], inputs["noise"], sigma, inputs["ref_latent"])
    case.check("noisy", noisy.transpose(1, 2), 2e-6)
    loss = critic_flow_loss(inputs["fake_x0"], noisy, inputs["generated"], inputs["noise"], sigma)
    case.check("loss", loss.reshape(1), 2e-6)


KINDS = {
    kind.__name__ if name is None else name: kind
    for name, kind in {
        "teacher_dit": teacher_dit,
        "causal_dit_parallel": causal_dit_parallel,
        "causal_dit_stream_full": causal_dit_stream_full,
        "causal_dit_stream_sink": causal_dit_stream_sink,
        "wan_vae": wan_vae,
        "umt5_encoder": umt5_encoder,
        "wav2vec2_features": wav2vec2_features,
        "flow_match_schedule": flow_match_schedule,
        "dmd_gradient_joint": dmd_gradient_joint,
        "dmd_gradient_split": dmd_gradient_split,
        "critic_loss": critic_loss,
    }.items()
}


def test_the_folder_holds_cases() -> None:
    assert CASES, f"no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@torch.no_grad()
def test_golden(path: Path) -> None:
    case = Case(path)
    case.path_kind = path.stem.split("-")[0]
    KINDS[case.path_kind](case)
