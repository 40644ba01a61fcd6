"""Muon on matrices that 8 devices hold in parts, without and with `sharding.spread`.

python -m benchmarks.devices [--tpu]

A step of 16 kernels of 512 x 2048 in `groups`, compiled for 8 simulated CPU devices, or for v5e:2x4
with libtpu (TPU_LIBRARY_PATH, as in `benchmarks.tpu`). Nothing is run. Collectives and the MiB of
their results on one device, and the floating-point operations of one device.
"""

import argparse
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_jax
from benchmarks.machine import describe
from benchmarks.tpu.machine import libtpu_version, tpus
from benchmarks.tpu.program import collectives

PARTS = PartitionSpec("data", "model")
MESHES = {(8, 1): "data", (4, 2): ("data", "model"), (2, 4): ("data", "model")}
MUON = functools.partial(
    optax.contrib.muon,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
)


def rows(devices: Any) -> Iterator[dict[str, Any]]:
    """A row for each mesh, decay and transformation."""
    for shape, axis in MESHES.items():
        mesh = Mesh(np.array(devices).reshape(shape), ("data", "model"))

        def on(x: Any, spec: PartitionSpec, mesh: Mesh = mesh) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        kernel = on(jax.ShapeDtypeStruct((512, 2048), jnp.float32), PARTS)
        params = {f"{i}": {"kernel": kernel} for i in range(16)}
        for decay in (0.0, 0.1):
            muon = MUON(1e-3, weight_decay=decay)
            spread = adam_jax.sharding.spread(muon, axis, specs=PARTS)
            for name, tx in {"muon": muon, "spread(muon)": spread}.items():
                tx = adam_jax.groups({".*/kernel": tx})
                where, least = (PARTS, 2) if name == "muon" else (PartitionSpec(axis), 1)
                state = jax.tree.map(
                    lambda x, s=where, n=least: on(x, s if x.ndim >= n else PartitionSpec()),
                    jax.eval_shape(tx.init, params),
                )
                step = jax.jit(tx.step, donate_argnums=(1, 2))
                compiled = step.lower(params, state, params).compile()
                found = sorted(collectives(compiled.as_text() or "").items())
                yield {
                    "mesh": "x".join(map(str, shape)),
                    "weight decay": decay,
                    "optimizer": name,
                    "collectives": ", ".join(f"{n} {kind}" for (kind, _), (n, _) in found),
                    "MiB": round(sum(size for _, (_, size) in found) / 2**20, 1),
                    "GFLOP": round((compiled.cost_analysis() or {})["flops"] / 1e9, 1),
                }


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tpu", action="store_true")
    on_tpu = arguments.parse_args().tpu
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print(describe("jax", "jaxlib", "optax"), f"libtpu {libtpu_version()}" if on_tpu else "")
    for n, row in enumerate(rows(tpus("v5e:2x4") if on_tpu else jax.devices())):
        if not n:
            print(f"\n| {' | '.join(row)} |\n{'|---' * len(row)}|")
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
