"""The mesh of devices, and the shardings of arrays on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from effv2_jax.network.types import PyTree

DATA_AXIS = "data"


def make_mesh(devices: Any = None) -> Mesh:
    """All devices, or the given ones, on one axis, over which batches are split."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(devices.reshape(-1), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def replicate_shapes(shapes: PyTree, mesh: Mesh) -> PyTree:
    """The same shapes, with the sharding `replicated`."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: every device holds consecutive examples."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a global batch, numpy [B / processes, ...], as global arrays [B, ...] on the mesh."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # it is meant; with several processes JAX counts it as implicit
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def abstract_batch(
    batch_size: int, image_size: int, max_labels: int, mesh: Mesh, **extra: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch: uint8 'image' [B, S, S, 3], int32 'label' [B], and [B] for each dtype in `extra`.

    With max_labels above 1 'label' is [B, max_labels].
    """
    labels = (batch_size,) if max_labels == 1 else (batch_size, max_labels)
    shapes: dict[str, Any] = {"image": ((batch_size, image_size, image_size, 3), "uint8"), "label": (labels, "int32")}
    shapes |= {name: ((batch_size,), dtype) for name, dtype in extra.items()}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
