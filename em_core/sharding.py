"""Weights, gradients and moments spread over the processes of a team (FSDP2), for models that do not fit one GPU.

The sharded fp32 parameters are the masters; each layer is gathered in the compute precision when it is used. Every
forward pass is then a matter of all processes, however many completions each of them still has to finish.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from em_core.parallel import Team


def shard(model: PreTrainedModel, team: Team, device: torch.device, dtype: torch.dtype) -> None:
    """Spread a model that lies on the host over the team's devices, layer by layer, in fp32; it computes in `dtype`.

    Gradients are summed over the processes, not averaged: the loss of each is divided by the tokens of all.
    """
    mesh = init_device_mesh(device.type, (team.size,))
    precision = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, torch.float32)
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    for module in [*layers, model]:
        for parameter in module.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        sharded: FSDPModule = fully_shard(module, mesh=mesh, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def drop_gathered(model: PreTrainedModel) -> None:
    """Forget what stays gathered after a forward pass (embeddings, norms), because the weights have changed."""
    assert isinstance(model, FSDPModule)
    model.reshard()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, in every process; all have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(other: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor, on the device of `other` and sharded as it is (where the shapes agree)."""
    copied = tensor.to(other.device, copy=True)
    if isinstance(other, DTensor) and other.shape == tensor.shape:
        return distribute_tensor(copied, other.device_mesh, other.placements, src_data_rank=None)
    return copied
