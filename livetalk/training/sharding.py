"""Networks spread over processes by FSDP2 (torch.distributed.fsdp.fully_shard): each process holds a part of every
weight, of its gradient, of its optimiser state and of its average; a layer is gathered for as long as it computes.

All processes make the same passes in the same order: a pass that one process makes alone waits for ever.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from livetalk.models.dit import WanDiT
from livetalk.models.text import TextEncoder
from livetalk.training import distributed

BESIDE = {WanDiT: "prepare", TextEncoder: "features"}
"""What callers run beside a network's forward, and what gathers its weights too."""


@dataclass(frozen=True)
class Sharding:
    """How a training is spread over processes; without shard every process holds everything.

    at_once: samples of a batch that a process takes at a time, so that the batch stays what it is for any number of
    processes (0: as many as `accumulate` leaves). offload: weights, gradients, optimiser state and averages lie in
    the host's memory. regather: gather a layer of what learns for every pass; false keeps it from the first pass to
    the backward one, for 2 bytes a parameter in bf16. no_sync: keep it through all parts of a batch and exchange
    gradients in the last one alone, for 6 bytes a parameter in bf16, 8 in fp32; with one part it is regather=false.
    sequence: so many processes share the tokens of a sample where a whole clip is scored.
    """

    shard: bool = False
    at_once: int = 0
    offload: bool = False
    regather: bool = True
    no_sync: bool = False
    sequence: int = 1

    def __post_init__(self) -> None:
        if self.at_once < 0 or self.sequence < 1:
            raise ValueError(f"at_once {self.at_once} is at least 0 and sequence {self.sequence} at least 1")
        if not self.shard and (self.offload or self.no_sync or self.sequence > 1):
            raise ValueError(
                f"offload={self.offload}, no_sync={self.no_sync}, sequence={self.sequence} need sharded networks: say "
                "shard=true, too"
            )


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes in a row; a process that nobody launched is a row of one."""
    distributed.found(device)
    return init_device_mesh(device.type, (distributed.ranks(),))


def shard(module: nn.Module, config: Sharding, device: torch.device, precision: str) -> nn.Module:
    """Spreads a network, which may still lie on the host or have no memory yet (meta), over all processes, in place;
    one that is spread already stays as it is.

    precision: "bf16" gathers layers in bfloat16, as autocast would cast them, and adds gradients up in float32; "fp32"
    gathers them as they are. The small weights outside of the layers are gathered in float32 all the same.
    """
    if isinstance(module, FSDPModule):
        return module
    bf16 = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    learns = any(p.requires_grad for p in module.parameters())
    how = {
        "mesh": mesh_of(device),
        "reshard_after_forward": (config.regather and not config.no_sync) or not learns,
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.offload else OffloadPolicy(),
    }
    layers = MixedPrecisionPolicy(**bf16, cast_forward_inputs=False)
    # A modulation is the sum of a weight and a projection of time: in float32, as where weights are kept in that.
    wide = MixedPrecisionPolicy(**bf16, output_dtype=torch.float32 if bf16 else None, cast_forward_inputs=False)
    small = MixedPrecisionPolicy(param_dtype=torch.float32 if bf16 else None, cast_forward_inputs=False)
    # It warns of layers whose outputs are views: nothing here changes an output in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    if isinstance(module, WanDiT):
        for block in module.blocks:
            text = block.cross_attn
            fully_shard([text.k, text.norm_k, text.v], mp_policy=layers, **how)  # prepare() runs these alone
            fully_shard(block, mp_policy=layers, **how)
        fully_shard(module.text_embedding, mp_policy=layers, **how)
        fully_shard(module.time_embedding, mp_policy=layers, **how)
        fully_shard(module.time_projection, mp_policy=wide, **how)
    elif isinstance(module, TextEncoder):
        for block in module.encoder.block:
            fully_shard(block, mp_policy=layers, **how)
    fully_shard(module, mp_policy=small, **how | {"reshard_after_forward": None})
    module.set_reshard_after_backward(not (config.no_sync and learns))
    for kind, beside in BESIDE.items():
        if isinstance(module, kind):
            register_fsdp_forward_method(module, beside)
    return module


def exchange(modules: nn.ModuleDict, now: bool) -> None:
    """Whether backward passes of sharded modules exchange gradients from here on; if not, these stay whole in every
    process and are added up there (FSDPModule.set_requires_gradient_sync). Layers stay whole until `let_go`."""
    for module in modules.values():
        module.set_requires_gradient_sync(now)


def let_go(modules: nn.ModuleDict) -> None:
    """Leaves of layers that are whole this process's part alone."""
    for module in modules.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, which shares its memory; a plain tensor is itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All of a tensor, in every process: for numbers such as a norm, never for weights."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sequence_group(size: int) -> dist.ProcessGroup | None:
    """The processes, `size` in a row, that share this one's samples; None where it has them to itself."""
    if size == 1:
        return None
    if distributed.ranks() % size:
        raise ValueError(f"sequence={size} does not divide {distributed.ranks()} processes")
    # Its new name is not known to PyTorch 2.11.
    warnings.filterwarnings("ignore", ".*reduce_scatter_tensor. is deprecated", FutureWarning)
    group, _ = dist.new_subgroups(group_size=size)
    return group
