"""Weights, gradients and optimizer state spread over processes: FSDP2 (Zhao et al., 2023), and HSDP.

The weights of a layer are gathered for as long as they are needed, in bfloat16 if the run computes in it. The
optimizer and checkpoints hold float32.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ....schemas.errors import TrainingError


def mesh_of(kind: Literal["full", "hybrid"], accelerator: Accelerator) -> DeviceMesh:
    """Return the processes that share weights, in one row, or in one row for each machine.

    Raises:
        TrainingError: for a single process, and for `hybrid` on a single machine.
    """
    world, device = accelerator.num_processes, accelerator.device.type
    if world == 1:
        raise TrainingError(
            f"`training.sharding: {kind}` spreads a policy over processes, and this run is a single one; start it with "
            "`torchrun --no-python --nproc-per-node GPUS build-and-train RECIPE`, or set `training.sharding: off`"
        )
    if kind == "full":
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world == local or world % local:
        raise TrainingError(
            f"`training.sharding: hybrid` has a copy of the policy on each of several machines with as many processes "
            f"each, and this run has {world} processes, {local} of them on this machine; use `full`"
        )
    return init_device_mesh(device, (world // local, local), mesh_dim_names=("replicate", "shard"))


def shard(
    policy: nn.Module,
    layers: Sequence[nn.Module],
    mesh: DeviceMesh,
    *,
    bf16: bool,
    kept_whole: Collection[nn.Module] = (),
) -> None:
    """Spread the weights of a policy over a mesh, in place, layer by layer.

    Layers in `kept_whole` keep their gathered weights from the forward to the backward pass. Layers whose
    keys and values are read need that: FSDP2 gathers weights again when the gradient of a layer's output
    arrives, and the gradient of its keys and values comes before that or instead.

    Raises:
        TrainingError: for a weight that is a single number, or that two layers share.
    """
    holders: dict[nn.Parameter, nn.Module] = {}
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if holders.setdefault(parameter, layer) is not layer:
                raise TrainingError(
                    f"`{name}` is a weight of two layers ({type(layer).__name__}), which FSDP2 spreads one by one; give each "
                    "its own, or set `training.sharding: off`"
                )
    for name, parameter in policy.named_parameters():
        if parameter.ndim == 0:
            raise TrainingError(
                f"`{name}` is a single number, which FSDP2 cannot spread over processes; make it a vector of one, "
                "or set `training.sharding: off`"
            )
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # statistics and targets stay exact
    )
    for module in (*layers, policy):
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=module not in kept_whole)


def reshard(model: nn.Module) -> None:
    """Forget gathered weights, so that the next pass gathers the current ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def wrapper(model: nn.Module) -> str:
    """Name the wrapper that spreads a model over processes."""
    if not isinstance(model, FSDPModule):
        return type(model).__name__
    mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
    rows, *columns = mesh.shape
    return f"HSDP, {rows} x {columns[0]}" if columns else "FSDP2"


def unsharded(model: nn.Module) -> type[Any]:
    """Return the class of a model before it was sharded."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def local(values: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, which shares its memory."""
    return values.to_local() if isinstance(values, DTensor) else values


def spread_as(weight: Tensor, part: Tensor) -> Tensor:
    """Return the tensor that this process holds a part of, sharded like a weight."""
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part,
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def whole(tree: Any) -> Any:
    """Gather the tensors of a nested structure, on the CPU if they are sharded. All processes call it."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


@torch.no_grad()
def put(target: Tensor, values: Tensor) -> None:
    """Write a whole tensor, which every process has, into one that may be sharded."""
    if isinstance(target, DTensor) and not isinstance(values, DTensor):
        on_device = values.to(target.device, target.dtype)
        values = distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
