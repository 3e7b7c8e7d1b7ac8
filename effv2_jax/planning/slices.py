"""Cloud TPU chips with their published peaks, and meshes of slices without a TPU."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from effv2_jax.errors import UserError, require
from effv2_jax.runtime.mesh import DATA_AXIS


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published peaks of one chip.

    flops: bfloat16 operations per second.
    hbm_bytes, hbm_bandwidth: bytes of memory, and bytes per second.
    link_bandwidth: bytes per second to all neighbours, both directions together.
    clock: Hz at which the matrix units that the page names reach the peak; it turns the compiler's cycles into time.

    Sources: Google Cloud's page of each version, cloud.google.com/tpu/docs/VERSION; links of v2 and v3: Jouppi et al.,
    A domain-specific supercomputer for training deep neural networks, 2020.
    """

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    clock: float


# Matrix units per chip: v2 2, v3 4, v4 8, v5e 4, v5p 8 of 128 x 128. For v6e, 4 units of 256 x 256, and for tpu7x, 8,
# agree with the compiler's estimate of a large product.
CHIPS = {
    "v2": Chip(45e12, 16e9, 700e9, 4 * 496e9 / 8, 0.70e9),
    "v3": Chip(123e12, 32e9, 900e9, 4 * 656e9 / 8, 0.94e9),
    "v4": Chip(275e12, 32e9, 1228e9, 2400e9 / 8, 1.05e9),
    "v5e": Chip(197e12, 16e9, 819e9, 1600e9 / 8, 1.50e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 4800e9 / 8, 1.75e9),
    "v6e": Chip(918e12, 32e9, 1640e9, 3200e9 / 8, 1.75e9),
    "tpu7x": Chip(2307e12, 192e9, 7380e9, 9600e9 / 8, 2.20e9),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice named VERSION:SHAPE, such as 'v5e:4x4'. JAX sees one or two devices per chip."""

    name: str
    chips: int
    devices: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    @property
    def devices_per_chip(self) -> int:
        return self.devices // self.chips


def check_name(name: str) -> None:
    """Raises UserError if the name is not VERSION:SHAPE with a known version, or libtpu is missing."""
    version, _, shape = name.partition(":")
    if version not in CHIPS or not shape.replace("x", "").isdigit():
        raise UserError(f"--topology={name} must be VERSION:SHAPE, such as v5e:4x4; versions are {', '.join(CHIPS)}")
    require("libtpu", "tpu", "compiling for a TPU slice, which needs no TPU,")


def describe_slice(name: str) -> Slice:
    """The slice of a name; raises as `slice_mesh`."""
    mesh = slice_mesh(name)
    chips = {tuple(device.coords) for device in mesh.devices.flat}
    return Slice(name, len(chips), mesh.size)


def slice_mesh(name: str) -> Mesh:
    """The mesh of a slice, for compilation without a TPU; needs libtpu.

    Raises:
      UserError: libtpu does not know the shape.
    """
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # only a TPU VM has the metadata server
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # a description does not take a TPU from another process
    from jax.experimental import topologies

    try:
        devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # libtpu's own, or it is missing
        raise UserError(f"--topology={name} cannot be described: {' '.join(str(error).split())[:200]}") from None
    return Mesh(np.array(devices), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
