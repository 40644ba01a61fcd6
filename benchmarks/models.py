"""Optimizer steps of public models, compiled for TPUs on a machine without one.

The table `models` of `benchmarks.scale`. Shapes are those of published configurations, with the
layers stacked as under `jax.lax.scan`. Parameters are split by FSDP: the axis of the embedding's
width over all devices of a slice, norms replicated; between slices everything is replicated. A
program is the optimizer alone: gradients are arguments, parameters and state are donated.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax import sharding
from benchmarks.machine import medians
from benchmarks.tpu.machine import placed, tpus
from benchmarks.tpu.program import collectives

HBM = {"v5e": 16e9, "v5p": 95e9}  # Bytes per chip, from Google Cloud's documentation.
ROUNDS = 3
SLOW = 5.0  # Seconds: programs that take longer are compiled once.


class Model(NamedTuple):
    """The configuration of a decoder, as published, and the number of its parameters."""

    published: int
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False
    experts: int = 0


# From MaxText's configs/models (llama2-7b, llama3.1-70b, mixtral-8x7b) and from config.json of
# meta-llama/Llama-3.2-1B. The numbers of parameters are those of the files on Hugging Face.
MODELS = {
    "Llama 3.2 1B": Model(1_235_814_400, 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "Llama 2 7B": Model(6_738_415_616, 32, 4096, 11008, 32, 32, 128, 32000),
    "Llama 3.1 70B": Model(70_553_706_496, 80, 8192, 28672, 64, 8, 128, 128256),
    "Mixtral 8x7B": Model(46_702_792_704, 32, 4096, 14336, 32, 8, 128, 32000, experts=8),
}


def parameters(model: Model, dtype: str, mesh: Mesh) -> dict[str, Any]:
    """The parameters of a decoder, split over the axis fsdp of a mesh."""
    layers, width, q, kv = model.layers, model.width, model.heads, model.kv_heads
    experts = (model.experts,) if model.experts else ()

    def array(*shape: int, split: int | None = None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*("fsdp" if axis == split else None for axis in range(len(shape))))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    to_mlp, from_mlp = (*experts, width, model.mlp), (*experts, model.mlp, width)
    first, last = 1 + len(experts), 2 + len(experts)
    stacked = {
        "attention_norm": array(layers, width),
        "query": array(layers, width, q, model.head, split=1),
        "key": array(layers, width, kv, model.head, split=1),
        "value": array(layers, width, kv, model.head, split=1),
        "out": array(layers, q, model.head, width, split=3),
        "mlp_norm": array(layers, width),
        "gate": array(layers, *to_mlp, split=first),
        "up": array(layers, *to_mlp, split=first),
        "down": array(layers, *from_mlp, split=last),
    }
    if experts:
        stacked["router"] = array(layers, width, *experts, split=1)
    tree = {"embedding": array(model.vocabulary, width, split=1), "layers": stacked}
    tree["norm"] = array(width)
    return tree if model.tied else tree | {"head": array(width, model.vocabulary, split=0)}


class Peer(NamedTuple):
    """An optimizer, how its state is split, and whose compile time it is compared with."""

    build: Callable[[], optax.GradientTransformation]
    base: str = "optax.adamw"
    dtype: str = "float32"
    wrap: bool = False  # In `shard_state`.
    axis: str = "fsdp"
    min_size: int = 2**20  # The state of norms is replicated, as they are.


RESIDUAL = "bfloat16, residual of 16 bits, 8-bit moments"
SKIPPED = "skip, clip, 8-bit moments"
APART = "adamw, state split over slices"
CODES = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
ADAMW = adam_jax.adamw(1e-3)
EIGHT = adam_jax.adamw(1e-3, **CODES)
CLIP, OPTAX_CLIP = adam_jax.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
PEERS = {
    "optax.adamw": Peer(lambda: optax.adamw(1e-3)),
    "adamw": Peer(lambda: ADAMW),
    "adamw by kernels": Peer(lambda: adam_jax.with_kernel(ADAMW, "pallas"), wrap=True),
    "8-bit moments": Peer(lambda: EIGHT, wrap=True),
    RESIDUAL: Peer(lambda: adam_jax.master_residual(EIGHT), dtype="bfloat16", wrap=True),
    "optax: clip, adamw": Peer(
        lambda: optax.chain(OPTAX_CLIP, optax.adamw(1e-3)), base="optax: clip, adamw"
    ),
    "clip, adamw": Peer(lambda: adam_jax.chain(CLIP, ADAMW), base="optax: clip, adamw"),
    SKIPPED: Peer(
        lambda: adam_jax.skip_nonfinite(adam_jax.chain(CLIP, EIGHT)),
        base="optax: clip, adamw",
        wrap=True,
    ),
    "factored nu": Peer(lambda: adam_jax.adamw(1e-3, nu_dtype=adam_jax.Factored())),
    "lamb by layers": Peer(lambda: adam_jax.with_layers(adam_jax.lamb(1e-3), "layers/.*")),
    "adamw, min_size=4096": Peer(lambda: ADAMW, min_size=4096),
    APART: Peer(lambda: ADAMW, wrap=True, axis="slice"),
}
ELEMENTWISE = {"optax.adamw", "adamw", "adamw by kernels", "8-bit moments", RESIDUAL}
FIRST = ("optax.adamw", "adamw", "adamw by kernels", "8-bit moments")
CLIPPED = ("optax: clip, adamw", "clip, adamw")
SUMS = ("factored nu", "lamb by layers", "adamw, min_size=4096")
# Model, topology of a slice, slices, optimizers.
CASES = [
    ("Llama 3.2 1B", "v5e:2x4", 1, (*FIRST, *CLIPPED)),
    ("Llama 2 7B", "v5e:4x8", 1, (*FIRST, RESIDUAL, *CLIPPED, SKIPPED)),
    ("Llama 2 7B", "v5p:2x2x4", 1, FIRST),
    ("Llama 3.1 70B", "v5e:16x16", 1, (*FIRST, *CLIPPED, *SUMS)),
    ("Llama 3.1 70B", "v5e:16x16", 2, (*FIRST, *CLIPPED, *SUMS, APART)),
    ("Llama 3.1 70B", "v5p:4x4x4", 1, FIRST),
    ("Mixtral 8x7B", "v5p:4x4x4", 1, (*FIRST, *CLIPPED)),
    ("Mixtral 8x7B", "v5p:4x4x4", 2, FIRST),
]


def printed(found: dict[tuple[str, str], tuple[int, float]]) -> str:
    lines = [f"{n} {name}, {size / 1e3:.3g} kB {link}" for (name, link), (n, size) in found.items()]
    return "; ".join(lines) or "none"


def mesh_of(topology: str, slices: int) -> Mesh:
    devices = np.array(tpus(topology, slices)).reshape(slices, -1)
    return Mesh(devices, ("slice", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def on_device(*trees: Any) -> int:
    """Bytes of arrays on each device, without the padding of tiles."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(trees)
    )


class Case:
    """The programs of one optimizer for one model on one mesh."""

    def __init__(self, model: Model, peer: Peer, mesh: Mesh) -> None:
        self.params, self.mesh = parameters(model, peer.dtype, mesh), mesh
        specs = jax.tree.map(lambda p: p.sharding.spec, self.params)
        split = {"axis": peer.axis, "specs": specs, "min_size": peer.min_size}
        tx = peer.build()
        self.places = sharding.state_shardings(tx, self.params, mesh, **split)
        self.tx: Any = sharding.shard_state(tx, mesh, **split) if peer.wrap else tx
        self.state = placed(jax.eval_shape(self.tx.init, self.params), self.places)

    def init(self) -> jax.stages.Compiled:
        """The program that makes the state, split from the start."""
        return jax.jit(self.tx.init, out_shardings=self.places).lower(self.params).compile()

    def step(self) -> tuple[jax.stages.Compiled, dict[str, float]]:
        """The program, and CPU seconds of each stage from cleared caches."""

        def step(params: Any, state: Any, grads: Any) -> Any:
            if hasattr(self.tx, "step"):
                return adam_jax.step(self.tx, grads, state, params)
            updates, state = self.tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        args = self.params, self.state
        jitted = jax.jit(
            step, donate_argnums=(0, 1), out_shardings=jax.tree.map(lambda x: x.sharding, args)
        )
        jax.clear_caches()
        gc.collect()
        marks = [time.process_time()]
        traced = jitted.trace(*args, self.params)
        marks.append(time.process_time())
        lowered = traced.lower()
        marks.append(time.process_time())
        compiled = lowered.compile()
        marks.append(time.process_time())
        spent = [b - a for a, b in zip(marks, marks[1:], strict=False)]
        return compiled, dict(zip(STAGES, spent, strict=True)) | {"all": sum(spent)}


STAGES = ("trace", "lower", "compile")


def models(cases: Any = CASES, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """GB per device, collectives, and seconds to compile; the optimizers alternate."""
    # The first program of a process also loads the compiler.
    Case(MODELS["Llama 3.2 1B"], PEERS["optax.adamw"], mesh_of("v5e:2x4", 1)).step()
    for name, topology, slices, wanted in cases:
        mesh = mesh_of(topology, slices)
        built = {peer: Case(MODELS[name], PEERS[peer], mesh) for peer in wanted}
        programs: dict[str, jax.stages.Compiled] = {}
        seconds: dict[str, dict[str, list[float]]] = {peer: {} for peer in wanted}
        for turn in range(rounds if slices == 1 else 1):
            for peer in random.Random(turn).sample(wanted, len(wanted)):
                if min(seconds[peer].get("all", [0])) > SLOW:
                    continue
                programs[peer], spent = built[peer].step()
                for stage, value in spent.items():
                    seconds[peer].setdefault(stage, []).append(value)
        times = {peer: medians(of) for peer, of in seconds.items()}
        for peer in wanted:
            yield row(name, topology, slices, peer, built[peer], programs[peer], times)


def row(
    name: str,
    topology: str,
    slices: int,
    peer: str,
    case: Case,
    program: jax.stages.Compiled,
    times: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """One line of the table."""
    init: Any = case.init().memory_analysis()
    step: Any = program.memory_analysis()
    found = collectives(program.as_text() or "")
    if found and peer in ELEMENTWISE:
        raise AssertionError(f"{peer} is elementwise, but {name} on {topology}: {printed(found)}")
    params, grads, state = on_device(case.params), on_device(case.params), on_device(case.state)
    peak = max(
        params + init.output_size_in_bytes + init.temp_size_in_bytes,
        step.argument_size_in_bytes
        + step.temp_size_in_bytes
        + step.output_size_in_bytes
        - step.alias_size_in_bytes,
    )
    base = times[PEERS[peer].base]
    lost = adam_jax.inspect.bytes_per_parameter(case.params, case.tx).lost_codes
    return {
        "model": name,
        "devices": f"{topology}{f', {slices} slices' if slices > 1 else ''}",
        "optimizer": peer,
        "GB: all": (params + grads + state) / 1e9,
        "state": state / 1e9,
        "lost codes": " ".join(lost),
        "init: temporaries": init.temp_size_in_bytes / 1e9,
        "init: peak": (params + init.output_size_in_bytes + init.temp_size_in_bytes) / 1e9,
        "step: temporaries": step.temp_size_in_bytes / 1e9,
        "of HBM": peak / HBM[topology.split(":")[0]],
        "collectives": printed(found),
        **{f"{stage} s": times[peer][stage] for stage in STAGES},
        "of Optax": times[peer]["all"] / base["all"],
    }
