"""Mesh and shardings. The only file that names a mesh axis.

`data` splits the batch (and, with `fsdp`, the parameters); `model` splits channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pose_jax.trees import path_name

DATA, MODEL = "data", "model"
_SMALL = 2**16
"""Arrays with fewer elements are replicated: splitting them costs more than it saves."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Attributes:
    data: devices along the batch; -1 takes all that `model` leaves.
    model: devices along output channels.
    fsdp: split parameters and optimiser state over `data` as well.
    """

    data: int = -1
    model: int = 1
    fsdp: bool = False


def make_mesh(config: MeshConfig | None = None, devices=None) -> Mesh:
    """Mesh with axes (data, model).

    Raises:
      ValueError: more devices asked than present, or sizes that do not divide them.
    """
    config = config or MeshConfig()
    devices = list(devices if devices is not None else jax.devices())
    model = config.model
    if model < 1 or (config.data < 1 and config.data != -1):
        raise ValueError(
            f"mesh.data={config.data}, mesh.model={model}: sizes are positive "
            "(data may be -1 for all devices)"
        )
    if config.data == -1 and len(devices) % model:
        raise ValueError(
            f"mesh.model={model} does not divide the {len(devices)} devices present"
        )
    if jax.process_count() > 1 and jax.local_device_count() % model:
        raise ValueError(
            f"mesh.model={model} must divide the {jax.local_device_count()} devices of one "
            "process: rows of a batch are fed by process"
        )
    data = len(devices) // model if config.data == -1 else config.data
    if data * model > len(devices) or data == 0:
        raise ValueError(
            f"mesh.data={config.data} x mesh.model={model} asks for "
            f"{max(data, 1) * model} devices but {len(devices)} "
            f"{devices[0].platform} device(s) are present; lower mesh.data or mesh.model "
            "(on a CPU, JAX_NUM_CPU_DEVICES=8 emulates eight)"
        )
    if jax.process_count() > 1 and data * model != len(devices):
        raise ValueError(
            f"{jax.process_count()} processes must use all {len(devices)} devices; set "
            "mesh.data=-1"
        )
    # Auto axes: analysis code gathers and sorts freely (Explicit mode would object).
    return jax.make_mesh(
        (data, model),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * model],
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data`."""
    return NamedSharding(mesh, P(DATA))


def coalition_sharding() -> NamedSharding | None:
    """Rows of an explanation split over this process's devices; None with a single one."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    mesh = jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )
    return NamedSharding(mesh, P(DATA))


def local_mesh() -> Mesh:
    """All devices of this process along the batch, for work that processes share out."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def wait_for_processes(what: str) -> None:
    """Until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def check_batch(batch: int, mesh: Mesh, *, accumulation: int = 1, what="train.batch"):
    """Refuse a batch that the mesh cannot split evenly.

    Raises:
      ValueError: the batch is not divisible by data devices x accumulation.
    """
    parts = mesh.shape[DATA] * accumulation
    if batch <= 0 or batch % parts:
        near = max(parts, round(batch / parts) * parts)
        raise ValueError(
            f"{what}={batch} is not divisible by {mesh.shape[DATA]} data devices x "
            f"accumulation {accumulation}; use {near}"
        )


def state_sharding(abstract: Any, mesh: Mesh, *, fsdp: bool = False) -> Any:
    """A `NamedSharding` per leaf of an abstract state.

    The last axis (output channels) of large arrays goes to `model`; with `fsdp` the largest
    remaining axis that divides goes to `data` (the rule of big_vision and kauldron).
    Everything else is replicated. The second layer of a pair (`output` after attention or in
    an MLP) is split along its inputs instead: they are where the first layer's outputs are,
    so the pair needs one sum over devices and no exchange between (Shoeybi et al. 2019).
    """

    def rule(path, leaf) -> NamedSharding:
        shape = leaf.shape
        spec: list[str | None] = [None] * len(shape)
        if math.prod(shape) >= _SMALL and len(shape) >= 2:
            second = path_name(path).endswith("/output/kernel") and len(shape) == 2
            axis = 0 if second else len(shape) - 1
            if mesh.shape[MODEL] > 1 and shape[axis] % mesh.shape[MODEL] == 0:
                spec[axis] = MODEL
            if fsdp and mesh.shape[DATA] > 1:
                free = [
                    (size, axis)
                    for axis, size in enumerate(shape)
                    if spec[axis] is None and size % mesh.shape[DATA] == 0
                ]
                if free:
                    spec[max(free)[1]] = DATA
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(rule, abstract)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> global arrays split over `data`."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }


def to_host(tree: Any) -> Any:
    """Replicated or fully addressable arrays -> numpy."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def gather(tree: Any) -> Any:
    """Global arrays, split in any way over several hosts too -> numpy on every process.
    Every process has to call."""
    if jax.process_count() == 1:
        return to_host(tree)
    return to_host(multihost_utils.process_allgather(tree, tiled=True))


def place_like(values: Any, tree: Any) -> Any:
    """Host values, equal on every process, placed as the arrays of `tree` are."""
    return jax.tree.map(
        lambda value, old: jax.make_array_from_callback(
            old.shape, old.sharding, lambda part: np.asarray(value)[part]
        ),
        values,
        tree,
    )


def any_over_processes(mask: np.ndarray) -> np.ndarray:
    """Where some process has True. Every process has to call."""
    if jax.process_count() == 1:
        return mask
    return np.asarray(np.any(multihost_utils.process_allgather(mask), axis=0))


def same_on_all_processes(value: int) -> bool:
    """Whether all processes have the same number. Every process has to call."""
    if jax.process_count() == 1:
        return True
    return len(np.unique(multihost_utils.process_allgather(np.int32(value)))) == 1


def round_up(batch: int, mesh: Mesh) -> int:
    """The smallest batch not below `batch` that the mesh splits evenly."""
    parts = mesh.shape[DATA]
    return -(-batch // parts) * parts
