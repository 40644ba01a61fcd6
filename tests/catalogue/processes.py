"""Trains and saves, or restores on another mesh: in one process, or in each of several.

    python -m tests.catalogue.processes PROCESS PROCESSES DEVICES ADDRESS FOLDER MESH

DEVICES are those of one process. The first program of a folder begins the run.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.inspect import check_state
from adam_jax.sharding import shard_state, state_shardings

# Whether codes fit into a device's part of the last axis of two leaves depends on the mesh.
SHAPES = {"fsdp": (128, 256), "last": (30, 256), "short": (301, 64), "bias": (64,)}
MESHES = {"1": (1, 1), "4": (4, 1), "8": (8, 1), "2x2": (2, 2), "2x4": (2, 4)}
MADE_ON = AbstractMesh(MESHES["4"], ("data", "model"))
# Gradients, two of them per optimizer step: the checkpoint is in the middle of one.
SAVED_AT, LAST, NAN_AT = 5, 9, 2


def specs_on(mesh):
    fsdp = PartitionSpec(*["model"] * (mesh.shape["model"] > 1), "data")
    return {name: fsdp if name == "fsdp" else PartitionSpec() for name in SHAPES}


def transformation_on(mesh):
    adamw = adam_jax.with_hyperparams(adam_jax.adamw)(
        1e-2,
        mu_dtype=jnp.int8,
        nu_dtype=adam_jax.by_path({"fsdp": jnp.float32}, default=jnp.int8),
    )
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw, adam_jax.ema_params(0.9))
    tx = adam_jax.accumulate(adam_jax.skip_nonfinite(tx), every=2)
    return shard_state(tx, mesh, specs=specs_on(mesh))


def integers(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step):
    """Integers, whose squares have the same sum in every order; NaN in one step."""
    return jax.tree.map(lambda x: x * np.nan if step == NAN_AT else x, integers(step))


def placed(tree, shardings):
    def place(x, where):
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(place, tree, shardings)


class Run:
    """The transformation, the parameters' shardings and the compiled step on a mesh."""

    def __init__(self, name):
        shape, count = MESHES[name], jax.process_count()
        # As many devices of each process.
        devices = np.array(jax.devices()).reshape(count, -1)[:, : np.prod(shape) // count]
        self.mesh = Mesh(devices.reshape(shape), ("data", "model"))
        specs = specs_on(self.mesh)
        self.places = {name: NamedSharding(self.mesh, spec) for name, spec in specs.items()}
        self.tx = transformation_on(self.mesh)
        self.step = jax.jit(self.tx.step)

    def new(self):
        params = placed(integers(99), self.places)
        return params, self.tx.init(params)

    def steps(self, run, numbers):
        for i in numbers:
            run = self.step(placed(gradients(i), self.places), run[1], run[0])
        return run

    def restored(self, checkpoint):
        """The form is that of the run that began, the devices are those of this one."""
        params = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in SHAPES.items()}
        made = transformation_on(MADE_ON)
        where = state_shardings(made, params, self.mesh, specs=specs_on(self.mesh))
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            (params, jax.eval_shape(made.init, params)),
            (self.places, where),
        )
        with ocp.StandardCheckpointer() as checkpointer:
            run = checkpointer.restore(checkpoint, target)
        assert jax.tree.map(lambda x: x.sharding, run) == (self.places, where)
        assert check_state(run[1], run[0], made, SAVED_AT // 2) == ()
        return run


def begin(name, folder):
    run = Run(name)
    state = run.steps(run.new(), range(SAVED_AT))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", state)
    write(folder / "saved", state)
    write(folder / "last", run.steps(state, range(SAVED_AT, LAST)))
    write(folder / "trained", trained(run.mesh))
    save_unsharded(run, folder / "unsharded")


def resume(name, folder):
    run = Run(name)
    state = run.restored(folder / "checkpoint")
    write(folder / f"{name}-saved", state)
    write(folder / f"{name}-last", run.steps(state, range(SAVED_AT, LAST)))


def trained(mesh):
    """The weights after steps with gradients of a batch that is split over the devices."""
    member = adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), member)
    tx = shard_state(adam_jax.skip_nonfinite(tx), mesh, min_size=8)
    weights = np.linspace(-1, 1, 128 * 256, dtype=np.float32).reshape(128, 256)
    batch = np.sin(np.arange(64 * 128, dtype=np.float32)).reshape(64, 128)
    params = placed({"w": weights}, {"w": NamedSharding(mesh, PartitionSpec())})
    x = placed(batch, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda p: jnp.mean(jnp.tanh(x @ p["w"]) ** 2))(params)
        return tx.step(grads, state, params)

    state = jax.jit(tx.init)(params)
    for _ in range(3):
        params, state = step(params, state, x)
    codes = [x for x in jax.tree.leaves(state) if x.dtype in (jnp.int8, jnp.uint8)]
    assert len(codes) == 2 and not any(x.is_fully_replicated for x in codes)
    return params


def save_unsharded(run, checkpoint):
    """Orbax saves a state from `init` outside jit only if its counts are on all devices."""
    tx = adam_jax.skip_nonfinite(adam_jax.with_hyperparams(adam_jax.adamw)(1e-2))
    state = tx.init(run.new()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint, state)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(checkpoint, state)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert x.sharding == y.sharding and x.sharding.device_set == set(run.mesh.devices.flat)


def write(file, run):
    """All arrays, whole, by one process."""
    arrays = multihost_utils.process_allgather(jax.tree.leaves(run), tiled=True)
    if jax.process_index() == 0:
        np.savez(file, *arrays)


def main():
    process, processes, devices, address, folder, name = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    # Programs do not overlap: Gloo once failed with the size of another collective's data.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(processes), int(process))
    run = resume if Path(folder, "checkpoint").exists() else begin
    run(name, Path(folder))


if __name__ == "__main__":
    main()
