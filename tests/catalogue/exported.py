"""Training that continues from an exported step."""

import jax
import jax.numpy as jnp

import adam_jax
from tests.catalogue.runs import assert_same_bits
from tests.catalogue.sharded import loss, parameters

PLATFORMS = ("cpu", "cuda", "tpu")


def train_from_the_file(member, dtype):
    tx = member.alias(1e-3)
    params = parameters(dtype)
    start, treedef = jax.tree.flatten((params, tx.init(params)))
    x = jnp.linspace(-1.0, 1.0, 1024, dtype=dtype).reshape(4, 256)

    @jax.jit
    def train(leaves, x):  # Leaves: files need a NamedTuple registered.
        params, state = jax.tree.unflatten(treedef, leaves)
        grads = jax.grad(loss)(params, x)
        return jax.tree.leaves(adam_jax.step(tx, grads, state, params))

    exported = jax.export.export(train, platforms=PLATFORMS)(
        *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (start, x))
    )
    assert exported.platforms == PLATFORMS
    assert list(exported.out_avals) == list(exported.in_avals[: len(start)])
    read = jax.export.deserialize(exported.serialize())
    ours = direct = start
    for _ in range(3):
        ours, direct = read.call(ours, x), train(direct, x)
    assert_same_bits(ours, direct)
    trained, _ = jax.tree.unflatten(treedef, ours)
    assert loss(trained, x) < loss(params, x)
