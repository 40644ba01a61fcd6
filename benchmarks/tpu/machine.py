"""TPU targets for compilation on a machine without TPUs. Nothing can be run."""

import functools
import importlib.util
import math
import os
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

LIBTPU = "0.0.52"  # As in pyproject.toml: it compiles what jax 0.10.2 lowers.


class Generation(NamedTuple):
    """A TPU, from Google Cloud's documentation.

    The clocks are those that give the documented peak for the number of matrix units; Ironwood's is
    unknown. If JAX sees two devices on a chip, each has half of the bandwidth.
    """

    topology: str
    bandwidth: float  # Bytes per second and chip.
    clock: float | None  # Hz.
    devices: int = 1  # Per chip.

    def cycles(self, number: float) -> float | None:
        """The minimum time to transfer that many bytes through HBM."""
        return self.clock and number * self.clock / (self.bandwidth / self.devices)


GENERATIONS = {
    "v5e": Generation("v5e:2x2", 819e9, 1.5e9),
    "v6e": Generation("v6e:2x2", 1640e9, 1.75e9),
    "v5p": Generation("v5p:2x2x1", 2765e9, 1.75e9),
    "v4": Generation("v4:2x2x1", 1228e9, 1.05e9, devices=2),
    "v7x": Generation("tpu7x:2x2x1", 7380e9, None, devices=2),
}
USUAL = ("v5e", "v6e", "v5p")


def library() -> Path:
    """The compiler, where JAX looks for it."""
    if named := os.environ.get("TPU_LIBRARY_PATH"):
        if (path := Path(named)).is_file():
            return path
    elif (found := importlib.util.find_spec("libtpu")) and found.origin:
        return Path(found.origin).with_name("libtpu.so")
    raise ModuleNotFoundError(
        f"no libtpu in {named or 'this Python'}: `python -m pip install --no-deps --target FOLDER"
        f" libtpu=={LIBTPU}`, then --libtpu FOLDER (or TPU_LIBRARY_PATH=FOLDER/libtpu/libtpu.so)"
    )


def use_libtpu_of(folder: str | None) -> Path:
    """Finds the compiler, in a folder that pip installed it to or in JAX's search path."""
    if folder:
        os.environ["TPU_LIBRARY_PATH"] = str(Path(folder).absolute() / "libtpu" / "libtpu.so")
    return library()


def libtpu_version() -> str:
    found = metadata.distributions(name="libtpu", path=[str(library().parent.parent)])
    return next((wheel.version for wheel in found), "of unknown version")


@functools.cache
def tpus(topology: str, slices: int = 1) -> Any:
    """The devices of a generation's smallest machine, or of slices of a topology such as v5e:2x4.

    Slices are connected by the data center's network only.
    """
    library()
    # Otherwise it asks the cloud for the machine, and stops if another process uses it.
    os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if topology in GENERATIONS:
        topology = GENERATIONS[topology].topology
    several = {"num_slices": slices} if slices > 1 else {}
    return topologies.get_topology_desc(topology, "tpu", **several).devices


def placed(tree: Any, sharding: Any) -> Any:
    """Arrays without values; `sharding` is one for all, or a tree."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
    )


def compile_for_tpu(
    generation: str, f: Any, *args: Any, donate: tuple[int, ...] = ()
) -> jax.stages.Compiled:
    """The function as one program; arguments are trees of `jax.ShapeDtypeStruct`."""
    args = placed(args, jax.sharding.SingleDeviceSharding(tpus(generation)[0]))
    return jax.jit(f, donate_argnums=donate).lower(*args).compile()


def bits(dtype: Any) -> int:
    """Bytes of an element; two of 4 bits share a byte."""
    return 4 if dtype.name in ("int4", "uint4") else 8 * dtype.itemsize


def size_in_bytes(tree: Any) -> float:
    return sum(math.prod(x.shape) * bits(x.dtype) / 8 for x in jax.tree.leaves(tree))
