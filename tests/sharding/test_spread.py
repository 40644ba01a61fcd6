"""Matrices spread over devices: the same steps and states, in all-to-alls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax.sharding import shard_state, spread
from benchmarks.scale import sent

pytestmark = pytest.mark.usefixtures("standard_promotion")
AXES = optax.contrib.MuonDimensionNumbers(-2, -1)
MUON = optax.contrib.muon(0.1, weight_decay=0.1, muon_weight_dimension_numbers=AXES)


def orthogonal(x):
    u, _, v = jnp.linalg.svd(x, full_matrices=False)
    return u @ v


def orthogonalized(u, p):
    return jax.tree.map(orthogonal, u)


# Its arithmetic rounds alike in every program. Optax's Muon divides by the bias correction of one
# leaf otherwise than by that of several, on one device too.
PLAIN = optax.chain(optax.trace(0.5), optax.stateless(orthogonalized))
KERNELS, REST = r".*kernel", r".*"


def parameters(count=9):
    keys = jax.random.split(jax.random.key(0), count + 1)
    params = {f"{i:02}": {"kernel": jax.random.normal(keys[i], (16, 48))} for i in range(count)}
    params["square"] = {"kernel": jax.random.normal(keys[-1], (32, 32))}
    return params | {"bias": jnp.ones(7), "count": jnp.zeros((), jnp.int32)}


def gradients(params):
    return jax.tree.map(lambda p: jnp.sin(9 * p) if p.dtype == jnp.float32 else None, params)


def grouped(tx):
    return adam_jax.groups({KERNELS: tx, REST: adam_jax.adamw(0.1)})


def updates(tx, params, grads, program=False):
    """The updates of three steps, and the state."""
    state, found, update = tx.init(params), [], jax.jit(tx.update)
    for scale in (1.0, 2.0, -1.0):
        u, state = update(jax.tree.map(lambda g, s=scale: s * g, grads), state, params)
        found.append(jax.device_get(u))
    text = update.lower(grads, state, params).compile().as_text() if program else ""
    return found, state, text


def assert_close(found, expected, rtol):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


LAYOUTS = {
    "rows": ((8,), P("data"), "data"),
    "columns": ((8,), P(None, "data"), "data"),
    "replicated": ((8,), P(), "data"),
    "two axes": ((4, 2), P("data", "model"), ("data", "model")),
    "the other order": ((2, 4), P("model", "data"), ("data", "model")),
    "both in one": ((2, 4), P(("data", "model")), ("model", "data")),
}


def on(mesh, spec, tree):
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P())), tree
    )


def case(layout, kind):
    shape, spec, axis = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kind,) * len(shape))
    return (
        mesh,
        spec,
        functools.partial(spread, axis=axis, specs=None if kind == AxisType.Explicit else spec),
    )


CASES = [(name, AxisType.Auto) for name in LAYOUTS]
CASES += [("rows", AxisType.Explicit), ("the other order", AxisType.Explicit)]


@pytest.mark.parametrize(("layout", "kind"), CASES, ids=str)
def test_the_same_updates_without_gathering_parts(layout, kind):
    mesh, spec, spread_over = case(layout, kind)
    params = parameters()
    placed = on(mesh, spec, params)
    expected, whole, _ = updates(grouped(PLAIN), params, gradients(params))
    found, state, program = updates(
        grouped(spread_over(PLAIN)), placed, gradients(placed), program=True
    )
    assert_close(found, expected, 0)
    collectives = {"all-gather"} if layout == "replicated" else {"all-to-all"}
    assert set(sent(program, 8)) == collectives
    momenta = jax.tree.leaves(whole.inner_states[KERNELS])
    stacks = state.inner_states[KERNELS].inner_state.inner_states
    assert {name.partition("_")[0]: len(stacks) for name in stacks} == {"float32": 2}
    for stack in jax.tree.leaves(stacks):
        assert stack.addressable_shards[0].data.shape[0] == len(stack) / 8 == -(-len(stack) // 8)
        stack, own = np.asarray(stack), [m for m in momenta if m.shape == stack.shape[1:]]
        np.testing.assert_array_equal(stack[: len(own)], np.stack(own))
        assert not np.any(stack[len(own) :])
    again = jax.jit(grouped(spread_over(PLAIN)).init)(placed)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, state)


ANY = {"muon": MUON, "adamw": adam_jax.adamw(0.1), "sphere": adam_jax.scale_on_sphere(0.1)}


@pytest.mark.parametrize("tx", ANY.values(), ids=list(ANY))
def test_any_transformation(tx):
    mesh, spec, spread_over = case("rows", AxisType.Auto)
    params = parameters()
    clipped = [
        adam_jax.chain(adam_jax.clip_by_global_norm(1.0), grouped(x)) for x in (tx, spread_over(tx))
    ]
    placed = on(mesh, spec, params)
    expected, found = (
        updates(adam_jax.skip_nonfinite(x), p, gradients(p))[0]
        for x, p in zip(clipped, (params, placed), strict=True)
    )
    assert_close(found, expected, 1e-5)
    if tx is not MUON:  # Its own bits depend on the leaves beside it, on one device too.
        alone = updates(grouped(tx), params, gradients(params))[0]
        assert_close(updates(grouped(spread_over(tx)), placed, gradients(placed))[0], alone, 0)


def test_without_a_gradient_the_state_stays():
    mesh, spec, spread_over = case("rows", AxisType.Auto)
    params = on(mesh, spec, parameters())
    tx, grads = grouped(spread_over(PLAIN)), gradients(params)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    grads["square"]["kernel"] = None
    u, new = jax.jit(tx.update)(grads, state, params)
    assert u["square"]["kernel"] is None
    first, second = (
        jax.device_get(x.inner_states[KERNELS].inner_state.inner_states) for x in (state, new)
    )
    rows, square = sorted(first)
    pairs = zip(jax.tree.leaves(first[rows]), jax.tree.leaves(second[rows]), strict=True)
    assert all((x != y).any() for x, y in pairs)
    jax.tree.map(np.testing.assert_array_equal, first[square], second[square])
    grads["03"]["kernel"] = None
    with pytest.raises(ValueError, match="^all matrices of one shape must .* None for '03/kernel'"):
        tx.update(grads, state, params)


def test_inside_shard_map():
    params = {k: p for k, p in parameters().items() if k not in ("bias", "count")}
    expected, _, _ = updates(PLAIN, params, gradients(params))
    for layout in ("rows", "columns", "replicated"):
        mesh, spec, spread_over = case(layout, AxisType.Auto)
        tx, state_spec = spread_over(PLAIN), P("data")
        init = jax.shard_map(
            tx.init, mesh=mesh, in_specs=(spec,), out_specs=state_spec, check_vma=False
        )
        update = jax.shard_map(
            tx.update,
            mesh=mesh,
            in_specs=(spec, state_spec, spec),
            out_specs=(spec, state_spec),
            check_vma=False,
        )
        mapped = optax.GradientTransformation(jax.jit(init), update)
        placed = on(mesh, spec, params)
        found, state, _ = updates(mapped, placed, gradients(placed))
        assert_close(found, expected, 0)
        # The state of `init` outside has the same names and shapes.
        assert jax.tree.map(jnp.shape, tx.init(placed)) == jax.tree.map(jnp.shape, state)


def test_layers_are_matrices():
    mesh, _, _ = case("rows", AxisType.Auto)
    layers = {"stack": jax.random.normal(jax.random.key(0), (5, 16, 48))}
    single = {str(i): x for i, x in enumerate(layers["stack"])}
    expected, _, _ = updates(PLAIN, single, gradients(single))
    tx = adam_jax.with_layers(spread(PLAIN, "data", specs=P(None, "data")), "stack")
    placed = jax.device_put(layers, NamedSharding(mesh, P(None, "data")))
    found, state, _ = updates(tx, placed, gradients(placed))
    assert_close([list(u["stack"]) for u in found], [list(u.values()) for u in expected], 0)
    assert jax.tree.leaves(state)[0].shape == (8, 16, 48)


def test_inside_shard_state():
    mesh, spec, spread_over = case("rows", AxisType.Auto)
    params = on(mesh, spec, parameters())
    specs = jax.tree.map(lambda p: p.sharding.spec, params)
    tx = grouped(spread_over(PLAIN))
    expected, _, _ = updates(tx, params, gradients(params))
    found, state, _ = updates(
        shard_state(tx, mesh, specs=specs, min_size=0), params, gradients(params)
    )
    assert_close(found, expected, 1e-6)
    for stack in jax.tree.leaves(state.inner_states[KERNELS]):
        assert stack.addressable_shards[0].data.shape[0] == len(stack) / 8


def test_what_does_not_fit_is_said():
    mesh, spec, spread_over = case("rows", AxisType.Auto)
    params = on(mesh, spec, {"w": jnp.ones((16, 48))})
    with pytest.raises(ValueError, match=r"axis must be of the mesh.*'model'.*\('data',\)"):
        spread(PLAIN, "model", specs=spec).init(params)
    with pytest.raises(ValueError, match=r"axis must be of the mesh.*set_mesh.*\(\)"):
        spread(PLAIN, specs=spec).init({"w": jnp.ones((16, 48))})
    with pytest.raises(ValueError, match=r"specs must be given.*p.sharding.spec"):
        spread(PLAIN).init(params)
    tx = spread_over(PLAIN)
    others = tx.init(on(mesh, spec, {"w": jnp.ones((32, 48))}))
    with pytest.raises(ValueError, match=r"state must have the matrices.*float32_16@data_48"):
        tx.update(params, others, params)
    with pytest.raises(ValueError, match=r"params must be given"):
        tx.update(params, tx.init(params))
