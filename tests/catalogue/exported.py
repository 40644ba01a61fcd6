"""Training that continues from an exported step."""

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax

PLATFORMS = ("cpu", "cuda", "tpu")


def perceptron(dtype):
    w, v = (jax.random.normal(key, (3, 5), dtype) for key in jax.random.split(jax.random.key(0)))
    return {"in": {"w": w, "b": jnp.zeros(5, dtype)}, "out": {"w": v.T, "b": jnp.ones(3, dtype)}}


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
    return jnp.mean((hidden @ params["out"]["w"] + params["out"]["b"] - y) ** 2)


def train_from_the_file(member, dtype):
    tx = member.alias(1e-2)
    params = perceptron(dtype)
    start, treedef = jax.tree.flatten((params, tx.init(params)))
    x, y = jnp.linspace(-1.0, 1.0, 24, dtype=dtype).reshape(2, 4, 3)

    @jax.jit
    def train(leaves, x, y):  # Leaves: files need a NamedTuple registered.
        params, state = jax.tree.unflatten(treedef, leaves)
        grads = jax.grad(loss)(params, x, y)
        return jax.tree.leaves(adam_jax.step(tx, grads, state, params))

    exported = jax.export.export(train, platforms=PLATFORMS)(
        *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (start, x, y))
    )
    assert exported.platforms == PLATFORMS
    assert list(exported.out_avals) == list(exported.in_avals[: len(start)])
    read = jax.export.deserialize(exported.serialize())
    ours = direct = start
    for _ in range(3):
        ours, direct = read.call(ours, x, y), train(direct, x, y)
    for mine, other in zip(ours, direct, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    trained, _ = jax.tree.unflatten(treedef, ours)
    assert loss(trained, x, y) < loss(params, x, y)
