"""Devices and processes: set-up of several processes, the mesh, and how arrays lie on it."""

import os
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effv2_jax.errors import UserError

DATA_AXIS = "data"


def initialize_processes(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins this process to the others of the run; the first thing that a process does with JAX.

    With no arguments JAX finds its peers itself on Cloud TPU slices, under Slurm, MPI and Kubernetes.

    Raises:
      UserError: arguments that do not go together, or peers that JAX cannot find.
    """
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            "--coordinator needs --num_processes=N and --process_id from 0 to N - 1, "
            f"not {num_processes} and {process_id}"
        )
    try:
        if coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this process cannot join the others: {error} Where JAX does not find them itself, give each process "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    logging.info("process %d of %d on %s", jax.process_index(), jax.process_count(), os.uname().nodename)


def make_mesh(devices: Any = None) -> Mesh:
    """All devices (or the given ones) in one axis, over which batches are split."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(devices.reshape(-1), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds consecutive examples."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a global batch, numpy [B / processes, ...], as global arrays [B, ...] on the mesh."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # explicit by its purpose; with several processes JAX takes it for implicit
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def abstract_batch(batch_size: int, image_size: int, mesh: Mesh, **extra: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch: uint8 'image' [B, S, S, 3], int32 'label' [B], and [B] of the dtypes in `extra`."""
    shapes = {"image": ((batch_size, image_size, image_size, 3), "uint8"), "label": ((batch_size,), "int32")}
    shapes |= {name: ((batch_size,), dtype) for name, dtype in extra.items()}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
