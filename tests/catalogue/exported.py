"""Training that continues from an exported step."""

import jax
import jax.numpy as jnp

import adam_jax
from tests.catalogue.runs import assert_same_bits

PLATFORMS = ("cpu", "cuda", "tpu")


def loss(params):
    return sum(jnp.mean((x.astype(jnp.float32) - 0.5) ** 2) for x in jax.tree.leaves(params))


def train_from_the_file(tx, params):
    """Three steps have the bits of the step that was exported, and lower the loss."""
    start, treedef = jax.tree.flatten((params, tx.init(params)))

    @jax.jit
    def train(leaves):  # Leaves: files need a NamedTuple registered.
        params, state = jax.tree.unflatten(treedef, leaves)
        grads = jax.grad(loss)(params)
        return jax.tree.leaves(adam_jax.step(tx, grads, state, params))

    exported = jax.export.export(train, platforms=PLATFORMS)(start)
    assert exported.platforms == PLATFORMS
    assert list(exported.out_avals) == list(exported.in_avals)
    read = jax.export.deserialize(exported.serialize())
    ours = direct = start
    for _ in range(3):
        ours, direct = read.call(ours), train(direct)
    assert_same_bits(ours, direct)
    assert loss(jax.tree.unflatten(treedef, ours)[0]) < loss(params)
