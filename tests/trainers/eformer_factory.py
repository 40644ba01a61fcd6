"""eformer's optimizer registry and checkpoints: python -m tests.trainers.eformer_factory.

eformer has no loop; EasyDeL's loop takes the transformation that its factory returns. This one is a
jitted step on arrays sharded with eformer's partition rules. The builder that the documentation
registers also steps two stages of a pipeline, beside eformer's own builder.
"""
# pyright: reportMissingImports=false

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from eformer.optimizers import AdamWConfig, OptimizerFactory, SchedulerConfig, register_optimizer
from eformer.optimizers._base import OptimizerBuilder
from eformer.serialization import Checkpointer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.trainers import cells
from tests.trainers.cells import CASES, RATE, STEPS, Case, Run, arrays, measure, mesh_of

BAD = 6  # The batch that is NaN.
MAKE = []


@register_optimizer("from a function")
@dataclasses.dataclass
class Builder(OptimizerBuilder):
    config: AdamWConfig

    def build(self, scheduler):
        return MAKE[-1](scheduler)


exec(cells.on_page("register_optimizer"), {})


def optimizer(make, **factory):
    """Of a function, or of a registered name."""
    name = make if isinstance(make, str) else "from a function"
    MAKE.append(make)
    schedule = SchedulerConfig(steps=STEPS, learning_rate=3e-3)
    custom = dict(custom_scheduler=lambda steps: RATE)
    return OptimizerFactory.create(name, schedule, **custom, **factory)


def model() -> dict:
    rng = np.random.default_rng(0)
    shapes = {"up": (64, 128), "bias": (128,), "down": (128, 64)}
    return {k: jnp.asarray(0.1 * rng.normal(size=n), jnp.float32) for k, n in shapes.items()}


def loss(params, x, stage=None):
    hidden = jax.nn.gelu(x @ params["up"] + params["bias"])
    if stage is not None:
        hidden = jax.device_put(hidden, stage)
    return jnp.mean((hidden @ params["down"] - jnp.roll(x, 1, 1)) ** 2)


def as_before(saved, like):
    """The restored array, sharded as a new one would be; scalars stay on all devices."""
    sharded = isinstance(like.sharding, NamedSharding)
    return jax.device_put(saved, like.sharding) if sharded else saved


def placed(params, mesh):
    """On the mesh, or on the meshes of two stages."""
    specs = {"up": P("fsdp", "tp"), "bias": P("tp"), "down": P("tp", "fsdp")}
    of = mesh if isinstance(mesh, dict) else dict.fromkeys(specs, mesh)
    return jax.device_put(params, {k: NamedSharding(of[k], spec) for k, spec in specs.items()})


def runner(mesh, enter, folder: Path, **factory):
    stage = NamedSharding(mesh["down"], P()) if isinstance(mesh, dict) else None

    def run(make, steps: int, name: str) -> Run:
        tx, rate = optimizer(make, **factory)  # EasyDeL logs `rate`, which no state holds.
        place = folder / name.replace(" ", "-")

        def step(params, state, x):
            value, grads = jax.value_and_grad(loss)(params, x, stage)
            if stage is not None:
                given = dict(params=params, grads=grads, opt_state=state)
                return *tx.apply_gradients_stage_local(**given), value
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        step = step if stage is not None else jax.jit(step)
        rng = np.random.default_rng(1)
        data = np.float32(rng.normal(size=(STEPS, 8, 64)))
        if "skip" in name:
            data[BAD] = np.nan
        params, losses, checkpoints = model(), [], Checkpointer(str(place), None, [])
        with enter():
            if mesh is not None:
                params = placed(params, mesh)
            state, start = tx.init(params), 0
            if place.exists():
                like, start = (params, state), STEPS // 2
                used = mesh if isinstance(mesh, jax.sharding.Mesh) else mesh_of(("fsdp",), (1,))
                saved, _ = checkpoints.load_pytree(
                    used, prefix="all", template=like, load_treedef=True
                )
                params, state = jax.tree.map(as_before, saved, like)
            for x in data[start:steps]:
                params, state, value = step(params, state, x)
                losses.append(value)
            of = mesh if isinstance(mesh, jax.sharding.Mesh) else None
            checkpoints.save_pytree((params, state), "all", step=steps, mesh=of)
            checkpoints.wait_until_finished()
        rates = [rate(t) for t in range(steps)]
        return Run(np.asarray(losses), rates, arrays((params, state)))

    return run


def main() -> None:
    ways = {"1 device": (None, contextlib.nullcontext)}
    pipelines = {}
    if jax.device_count() > 1:
        one, two = mesh_of(("fsdp", "tp"), (4, 1)), mesh_of(("fsdp", "tp"), (2, 2))
        ways = {
            "with mesh, fsdp 4": (one, lambda: one),
            "jax.set_mesh, fsdp 2, tp 2": (two, lambda: jax.set_mesh(two)),
        }
        first, last = (Mesh(x, ("fsdp", "tp")) for x in np.split(one.devices, 2))
        pipelines = {"2 stages": dict(up=first, bias=first, down=last)}
    adamw = {name: CASES[name] for name in ("adamw", "adamw, int8 moments")}
    page = {"the page's builder": Case("adam_jax", "adamw", 1e-3)}
    both = dict(clip_grad=0.1, weight_decay=0.1)
    two_steps = dict(gradient_accumulation_steps=2)  # eformer's builder has none in a pipeline.
    with tempfile.TemporaryDirectory() as folder:
        for name, (mesh, enter) in ways.items():
            measure("eformer", name, runner(mesh, enter, Path(folder)), CASES | page)
            run = runner(mesh, enter, Path(folder), **both, **two_steps)
            measure("eformer", f"{name}; factory's wrappers", run, adamw | page)
        for name, mesh in pipelines.items():
            run = runner(mesh, contextlib.nullcontext, Path(folder))
            measure("eformer", name, run, page)
            run = runner(mesh, contextlib.nullcontext, Path(folder), **both)
            measure("eformer", f"{name}; factory's wrappers", run, page)


if __name__ == "__main__":
    main()
