"""Parameter names of the Wan autoencoder in the diffusers layout (vae/diffusion_pytorch_model.safetensors).

The published file counts all layers of a half in one list; diffusers nests them by stage and names the parts of a
block. Values and shapes are the same.
"""

from torch import Tensor

from livetalk.models.vae import VAEConfig

_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_RESAMPLE = {"resample.1": "resample.1", "time_conv": "time_conv"}
_ATTENTION = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}


def published_modules(config: VAEConfig) -> dict[str, str]:
    """Module name in diffusers' AutoencoderKLWan -> module name in the published file."""
    halvings = len(config.temporal_downsample)
    table = {"quant_conv": "conv1", "post_quant_conv": "conv2"}

    def add(theirs: str, ours: str, parts: dict[str, str]) -> None:
        table.update({f"{theirs}.{name}": f"{ours}.{part}" for name, part in parts.items()})

    for half in ("encoder", "decoder"):
        add(half, half, {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"})
        add(f"{half}.mid_block.resnets.0", f"{half}.middle.0", _BLOCK)
        add(f"{half}.mid_block.attentions.0", f"{half}.middle.1", _ATTENTION)
        add(f"{half}.mid_block.resnets.1", f"{half}.middle.2", _BLOCK)
    for layer in range((halvings + 1) * (config.res_blocks + 1) - 1):
        # Both count the encoder's layers alike: the residual blocks of a stage, then its down-sampler.
        last = layer % (config.res_blocks + 1) == config.res_blocks
        add(f"encoder.down_blocks.{layer}", f"encoder.downsamples.{layer}", _RESAMPLE if last else _BLOCK)
    for stage in range(halvings + 1):
        first = stage * (config.res_blocks + 2)
        for n in range(config.res_blocks + 1):
            add(f"decoder.up_blocks.{stage}.resnets.{n}", f"decoder.upsamples.{first + n}", _BLOCK)
        if stage < halvings:
            sampler = f"decoder.upsamples.{first + config.res_blocks + 1}"
            add(f"decoder.up_blocks.{stage}.upsamplers.0", sampler, _RESAMPLE)
    return table


def from_diffusers(tensors: dict[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """The tensors of a diffusers file under their published names, ready to load strictly.

    ValueError for a name that AutoencoderKLWan of this size does not have.
    """
    return _renamed(tensors, published_modules(config))


def to_diffusers(tensors: dict[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """The tensors of a published file under their diffusers names; the inverse of `from_diffusers`."""
    return _renamed(tensors, {ours: theirs for theirs, ours in published_modules(config).items()})


def _renamed(tensors: dict[str, Tensor], modules: dict[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise ValueError(f"{name!r} is not a parameter of a Wan autoencoder of this size")
        result[f"{modules[module]}.{leaf}"] = tensor
    return result
