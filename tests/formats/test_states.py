"""Low-precision states during a run: sharded, converted, saved, exported, and in Flax."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from tests.catalogue.exported import train_from_the_file
from tests.catalogue.low_precision import gradients

SPECS = {"columns": P(None, "data"), "rows": P("data", None), "bias": P()}


def params_of(dtype=jnp.bfloat16):
    shapes = {"columns": (16, 1024), "rows": (64, 128), "bias": (100,)}
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        name: jax.random.normal(key, shapes[name], jnp.float32).astype(dtype)
        for name, key in zip(shapes, keys, strict=True)
    }


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def shardings(mesh):
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


@functools.cache
def step_of(tx):
    return jax.jit(lambda params, state, grads: adam_jax.step(tx, grads, state, params))


def run(tx, place, turns=3):
    params = place(params_of())
    state = tx.init(params)
    step = step_of(tx)
    placed = jax.tree.map(lambda x: x.sharding, state)
    for turn in range(turns):
        params, state = step(params, state, place(gradients(turn, params_of())))
    return params, state, placed


def in_float32(x):
    """The state in float32, codes included, exactly; NumPy cannot compare int4."""
    return np.asarray(x.astype(jnp.float32))


FORMS = {
    "8 bits": adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "4 and 8 bits, residual": adam_jax.master_residual(
        adam_jax.adamw(1e-3, mu_dtype=jnp.int4, nu_dtype=jnp.int8), 8
    ),
    "float16 and stochastic bfloat16, residual": adam_jax.master_residual(
        adam_jax.adamw(1e-3, mu_dtype=jnp.float16, nu_dtype=adam_jax.stochastic(jnp.bfloat16))
    ),
    "stochastic codes and weights": adam_jax.stochastic_rounding(
        adam_jax.adamw(
            1e-3, mu_dtype=adam_jax.stochastic(jnp.int8), nu_dtype=adam_jax.stochastic(jnp.int4)
        )
    ),
    "by path": adam_jax.amsgrad(1e-3, nu_dtype=adam_jax.by_path({"rows": jnp.int8})),
}
# These three cover every dtype and container of the five, which is enough for tests of storage.
DIFFERENT = {name: FORMS[name] for name in FORMS if name not in ("8 bits", "by path")}
every_kind_of_form = pytest.mark.parametrize("tx", DIFFERENT.values(), ids=DIFFERENT)


@pytest.mark.slow
@pytest.mark.bits
@every_kind_of_form
def test_sharded_the_bits_are_those_of_one_device_and_nothing_is_sent(tx):
    alone = run(tx, lambda tree: jax.device_put(tree, jax.devices()[0]))
    params, state, placed = run(tx, lambda tree: jax.device_put(tree, shardings(mesh_of())))
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        assert x.ndim == 0 or x.sharding.is_equivalent_to(sharding, x.ndim)
    as_bytes = (jax.tree.map(in_float32, t) for t in ((params, state), alone[:2]))
    jax.tree.map(np.testing.assert_array_equal, *as_bytes)
    text = step_of(tx).lower(params, state, params).compile().as_text()
    moving = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert [word for word in moving if re.search(rf"{word}(-start)?\(", text)] == []


def test_on_a_mesh_with_explicit_axes():
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = jax.device_put(params_of(), shardings(mesh))
        tx = adam_jax.master_residual(adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8))
        for init in (tx.init, jax.jit(tx.init)):
            state = init(params)
            mu = state.inner_state[0].mu["columns"]
            assert mu.codes.sharding.spec == mu.scale.sharding.spec == SPECS["columns"]
            assert mu.scale.shape == (16, 8)
            grads = jax.device_put(gradients(0, params_of()), shardings(mesh))
            after = step_of(tx)(params, state, grads)
            assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, (params, state))


@pytest.mark.parametrize(
    "tx",
    [FORMS["8 bits"], adam_jax.stochastic_rounding(adam_jax.adamw(1e-3))],
    ids=["moments", "weights"],
)
def test_on_explicit_axes_a_device_computes_the_random_bits_of_its_part(tx):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        w = jax.device_put(jnp.ones((16, 4096), "bfloat16"), NamedSharding(mesh, P(None, "data")))
        text = jax.jit(tx.step).lower(w, tx.init(w), w).compile().as_text()
    assert "u32[16,512]" in text and "u32[16,4096]" not in text


def test_a_block_lies_on_one_device():
    """512 columns on 8 devices are 64 for each device."""
    sharding = NamedSharding(mesh_of(AxisType.Explicit), P(None, "data"))
    params = jax.device_put(jnp.ones((16, 512)), sharding)
    nu = adam_jax.scale_by_adam(nu_dtype=jnp.int8).init(params).nu
    assert nu.format.block == 64 and nu.scale.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.slow
@pytest.mark.bits
@every_kind_of_form
def test_the_step_exported_for_three_platforms_has_the_same_bits(tx):
    train_from_the_file(tx, params_of())


@pytest.mark.slow
@pytest.mark.bits
@every_kind_of_form
def test_under_vmap_the_bits_are_those_of_one(tx):
    params = jax.tree.map(lambda p: jnp.stack([p, p, p]), params_of())
    states = jax.jit(jax.vmap(tx.init))(params)
    grads = gradients(0, params)
    after, states = jax.jit(jax.vmap(step_of(tx)))(params, states, grads)
    one, its = jax.tree.map(lambda x: x[1], (params, grads))
    expected, _ = step_of(tx)(one, tx.init(one), its)
    np.testing.assert_array_equal(in_float32(after["rows"][1]), in_float32(expected["rows"]))


STORED = {
    "codes": {"mu_dtype": jnp.int8},
    "codes by path": {"nu_dtype": adam_jax.by_path({"rows": jnp.int4})},
    "rows and columns": {"nu_dtype": adam_jax.Factored()},
    "means": {"nu_dtype": adam_jax.BlockMeans(-1)},
    "Adam-mini": {"nu_dtype": adam_jax.AdamMini()},
    "16 bits": {"mu_dtype": jnp.float16, "nu_dtype": adam_jax.stochastic(jnp.bfloat16)},
}
AROUND = {
    "alone": lambda tx: tx,
    "skip": adam_jax.skip_nonfinite,
    "groups": lambda tx: adam_jax.groups({".*": tx}),
    "chain": lambda tx: adam_jax.chain(tx, optax.identity()),
    "optax.chain": lambda tx: optax.chain(optax.identity(), tx),
    "optax.masked": lambda tx: optax.masked(tx, dict.fromkeys(SPECS, True)),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_mapped_function_gets_arrays_like_the_parameters(stored, around):
    """Or it is refused: a threshold on codes prunes others than one on moments."""
    tx, params, seen = around(adam_jax.adamw(1e-3, **stored)), params_of(), []
    state = tx.init(params)
    if stored is not STORED["16 bits"]:
        with pytest.raises(ValueError, match="map_params must not store"):
            optax.tree.map_params(tx, seen.append, state)
        return
    optax.tree.map_params(tx, lambda x: seen.append(x.shape), state)
    assert sorted(seen) == sorted(2 * [p.shape for p in params.values()])


@pytest.mark.parametrize("wrapper", [adam_jax.ema_params, adam_jax.accumulate])
def test_a_mapped_function_gets_no_codes_of_a_wrapper(wrapper):
    if wrapper is adam_jax.accumulate:
        tx = adam_jax.accumulate(adam_jax.adamw(1e-3), 2, dtype=jnp.int8)
    else:
        tx = adam_jax.chain(adam_jax.adamw(1e-3), adam_jax.ema_params(0.9, dtype=jnp.int8))
    with pytest.raises(ValueError, match="must not store (ema|acc_grads) as int8"):
        optax.tree.map_params(tx, lambda x: x, tx.init(params_of()))


CONVERSIONS = {"8 bits": jnp.int8, "4 bits": jnp.int4, "16 bits": jnp.bfloat16}


every_conversion = pytest.mark.parametrize("dtype", CONVERSIONS.values(), ids=CONVERSIONS)


@every_conversion
def test_a_function_of_the_moments_through_optax(dtype):
    tx, params = adam_jax.adamw(1e-3, mu_dtype=dtype, nu_dtype=dtype), params_of(jnp.float32)
    _, state = tx.update(gradients(0, params), tx.init(params), params)
    kept = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 3 > 0, params)
    dense = adam_jax.convert_state(state, mu_dtype=jnp.float32, nu_dtype=jnp.float32)
    plain = adam_jax.adamw(1e-3)
    pruned = optax.tree.map_params(plain, lambda m, k: jnp.where(k, m, 0), dense, kept)
    again = adam_jax.convert_state(pruned, mu_dtype=dtype, nu_dtype=dtype)
    again = adam_jax.convert_state(again, mu_dtype=jnp.float32, nu_dtype=jnp.float32)
    for name in ("mu", "nu"):
        before, after = getattr(dense[0], name), getattr(again[0], name)
        for x, y, k in zip(*map(jax.tree.leaves, (before, after, kept)), strict=True):
            error = {jnp.int8: 0.01, jnp.int4: 0.1, jnp.bfloat16: 0.0}[dtype]
            atol = error * float(jnp.abs(x).max())
            np.testing.assert_allclose(y, jnp.where(k, x, 0), atol=atol)


def test_conversion_by_path_knows_the_paths_of_init():
    """Including those of nnx variables, and of a tree that is a single array."""
    dense = adam_jax.adamw(1e-3)
    for path, params in (
        ("w", nnx.state(nnx.Dict(w=nnx.Param(jnp.ones((64, 128)))))),
        ("(the whole tree)", jnp.ones((64, 128))),
        ("w", {"a": None, "b": jnp.ones((64, 128)), "w": jnp.ones((64, 128))}),
    ):
        form = adam_jax.by_path({re.escape(path): jnp.int8}, default=jnp.float32)
        expected = adam_jax.adamw(1e-3, mu_dtype=form).init(params)
        found = adam_jax.convert_state(dense.init(params), mu_dtype=form)
        dtypes, wanted = ([x.dtype for x in jax.tree.leaves(s)] for s in (found, expected))
        assert dtypes == wanted and jnp.int8 in wanted
