"""Parameter names of the Wan autoencoder in the diffusers layout (vae/diffusion_pytorch_model.safetensors).

The published file counts all layers of a half in one list; diffusers nests them by stage. Shapes are the same.
"""

import re

_TOP = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "encoder.norm_out": "encoder.head.0",
    "encoder.conv_out": "encoder.head.2",
    "decoder.conv_in": "decoder.conv1",
    "decoder.norm_out": "decoder.head.0",
    "decoder.conv_out": "decoder.head.2",
}
_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def published_name(name: str, res_blocks: int = 2) -> str:
    """The name in Wan2.1_VAE.pth of the parameter that diffusers' AutoencoderKLWan calls `name`.

    `res_blocks` is the config's. ValueError for a name that is not the autoencoder's.
    """
    module, _, leaf = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    half, _, rest = module.partition(".")
    # Residual blocks, and after them the up-sampler of the stage.
    stage = res_blocks + 2
    rules = (
        (r"mid_block\.attentions\.0\.(.+)", lambda m: f"middle.1.{m[1]}"),
        (r"mid_block\.resnets\.([01])\.(\w+)", lambda m: f"middle.{2 * int(m[1])}.{_BLOCK[m[2]]}"),
        (r"down_blocks\.(\d+)\.(resample\.1|time_conv)", lambda m: f"downsamples.{m[1]}.{m[2]}"),
        (r"down_blocks\.(\d+)\.(\w+)", lambda m: f"downsamples.{m[1]}.{_BLOCK[m[2]]}"),
        (
            r"up_blocks\.(\d+)\.resnets\.(\d+)\.(\w+)",
            lambda m: f"upsamples.{int(m[1]) * stage + int(m[2])}.{_BLOCK[m[3]]}",
        ),
        (
            r"up_blocks\.(\d+)\.upsamplers\.0\.(resample\.1|time_conv)",
            lambda m: f"upsamples.{int(m[1]) * stage + res_blocks + 1}.{m[2]}",
        ),
    )
    if half in ("encoder", "decoder"):
        for pattern, rename in rules:
            match = re.fullmatch(pattern, rest)
            if match and (match[match.lastindex] in _BLOCK or "residual" not in rest):
                return f"{half}.{rename(match)}.{leaf}"
    raise ValueError(f"{name!r} is not a parameter of diffusers' AutoencoderKLWan")


def from_diffusers(tensors: dict, res_blocks: int = 2) -> dict:
    """The same values under the published names, ready to load strictly."""
    return {published_name(name, res_blocks): value for name, value in tensors.items()}
