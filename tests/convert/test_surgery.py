"""Runs whose model changes: the steps after it are those of a float64 loop that did the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import convert
from adam_jax.inspect import check_state
from tests.catalogue.runs import assert_same_bits, raised

OLD = {"body": (6, 5), "l0": (5, 5), "l1": (5, 5), "head": (5, 3)}
ROWS = np.array([0, 2, 5])
ADAMW = adam_jax.adamw(1e-2)
FROZEN = adam_jax.groups(adam_jax.adamw, {"l.": None}, learning_rate=1e-2)
LONG = {"body": (6, 5), "l0": (5, 5), "l1": (5, 5), "l2": (5, 5), "head": (5, 3)}
PRUNED, GROWN = OLD | {"body": (3, 5)}, OLD | {"body": (9, 5)}
# The transformations before and after, the new shapes, rename, kept and dropped leaves.
SURGERY = {
    "freeze": (ADAMW, FROZEN, OLD, {}, ["body", "head"], ["l0", "l1"]),
    "unfreeze": (FROZEN, ADAMW, OLD, {}, ["body", "head"], []),
    "new head": (ADAMW, ADAMW, OLD | {"head": (5, 7)}, {}, ["body", "l0", "l1"], ["head"]),
    "more layers": (ADAMW, ADAMW, LONG, {"l2": "l1", "l1": None}, ["body", "head", "l0", "l2"], []),
    "fewer layers": (ADAMW, ADAMW, {"a": (5, 5)}, {"a": "l1"}, ["a"], ["body", "head", "l0"]),
    "pruned rows": (ADAMW, ADAMW, PRUNED, {"body": ("body", ROWS)}, [*sorted(OLD)], []),
    "more rows": (ADAMW, ADAMW, GROWN, {"body": ("body", ...)}, [*sorted(OLD)], []),
}


def steps(tx, params, state, loop, t0, count):
    """Steps of both; `loop` has parameter, mu and nu of each leaf, without moments if frozen."""
    step = jax.jit(tx.step)
    for t in range(t0, t0 + count):
        rng = np.random.default_rng(t)
        grads = {k: rng.normal(size=p.shape) for k, p in sorted(params.items())}
        params, state = step(jax.tree.map(jnp.asarray, grads), state, params)
        for k, (p, *moments) in loop.items():
            if moments:
                m, v, g = 0.9 * moments[0] + 0.1 * grads[k], moments[1], grads[k]
                v = 0.999 * v + 0.001 * g**2
                mean, root = m / (1 - 0.9 ** (t + 1)), np.sqrt(v / (1 - 0.999 ** (t + 1)))
                loop[k] = p - 1e-2 * (mean / (root + 1e-8) + 1e-4 * p), m, v
    return params, state, loop


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SURGERY)
def test_the_steps_after_it_are_those_of_a_loop(name):
    before, after, shapes, rename, kept, dropped = SURGERY[name]
    rng = np.random.default_rng(1000)
    old = {k: rng.normal(size=s) for k, s in OLD.items()}
    moving = [k for k in OLD if not (before is FROZEN and k[0] == "l")]
    loop = {k: (p, *[np.zeros_like(p)] * (2 if k in moving else 0)) for k, p in old.items()}
    params = jax.tree.map(jnp.asarray, old)
    params, state, loop = steps(before, params, before.init(params), loop, 0, 20)

    new, loop_of = {k: rng.normal(size=s) for k, s in shapes.items()}, {}
    for k, p in new.items():
        source, index = x if isinstance(x := rename.get(k, k), tuple) else (x, ...)
        moments = [np.zeros_like(p), np.zeros_like(p)]
        if k in kept:
            for m, x in zip(moments, loop[source][1:], strict=True):
                m[: len(x[index])] = x[index]
        loop_of[k] = (p, *moments) if not (after is FROZEN and k[0] == "l") else (p,)
    params_of = jax.tree.map(jnp.asarray, new)
    state, paths = convert.carry(state, params, params_of, after, rename)
    assert sorted(paths["kept"]) == kept and sorted(paths["dropped"]) == dropped
    assert {*paths["started"]} == {k for k, x in loop_of.items() if len(x) == 3} - {*kept}
    assert check_state(state, params_of, after, step=20) == ()
    params, _, loop = steps(after, params_of, state, loop_of, 20, 200)
    for k, p in params.items():
        np.testing.assert_allclose(p, loop[k][0], rtol=1e-12, atol=1e-12)


SMALL = adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=adam_jax.stochastic(jnp.bfloat16))
INNER = adam_jax.chain(adam_jax.master_residual(SMALL), adam_jax.ema_params(0.9))
EVERYTHING = adam_jax.accumulate(adam_jax.telemetry(adam_jax.skip_nonfinite(INNER)), 2)


@pytest.mark.usefixtures("standard_promotion")
def test_all_that_a_state_has_is_kept_and_what_is_new_is_that_of_init():
    old = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(128, jnp.bfloat16)}
    params, state = old, EVERYTHING.init(old)
    for t in range(5):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p + t) * 0.1, params)
        params, state = adam_jax.step(EVERYTHING, grads, state, params)
    assert_same_bits(convert.carry(state, params, params, EVERYTHING)[0], state)
    new = {"v": params["w"], "b": params["b"][:64]}
    made, _ = convert.carry(state, params, new, EVERYTHING, {"v": "w"})
    start = EVERYTHING.init(new)
    named, before, fresh = (dict(jax.tree.leaves_with_path(x)) for x in (made, state, start))
    w, v, b = map(jax.tree_util.DictKey, "wvb")
    for path, x in named.items():
        source = tuple(w if key == v else key for key in path)
        np.testing.assert_array_equal(x, fresh[path] if b in path else before[source])


def test_moments_move_between_groups_with_their_counts():
    old, both = {"w": jnp.ones(3)}, {"w": ADAMW, ".*": ADAMW}
    new, two = old | {"c": jnp.ones(2)}, adam_jax.groups(both)
    _, state = adam_jax.step(ADAMW, old, ADAMW.init(old), old)
    state, paths = convert.carry(state, old, new, two)
    assert paths == {"kept": ["w"], "started": ["c"], "dropped": []}
    counts = [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert sorted(counts) == [0, 1]
    assert "got [0, 1]" in raised(lambda: convert.carry(state, new, new, ADAMW))


def test_parameters_that_are_one_array_keep_the_count_of_a_schedule():
    tx, old, root = adam_jax.adamw(lambda count: 1e-2), jnp.ones((4, 3)), "(the whole tree)"
    _, state = adam_jax.step(tx, old, tx.init(old), old)
    rename = {root: (root, np.array([1, 3]))}
    state, paths = convert.carry(state, old, jnp.ones((2, 3)), tx, rename)
    assert paths["kept"] == [root] and state[0].mu.shape == (2, 3)
    assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [1, 1]


def test_what_does_not_fit_is_an_error():
    old = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    state = ADAMW.init(old)
    cases = {
        "rename must map": lambda: convert.carry(state, old, old, ADAMW, {"w": "v"}),
        "an index in rename": lambda: convert.carry(
            state, old, {"w": jnp.ones((2, 3))}, ADAMW, {"w": ("w", ...)}
        ),
        "state must have moments": lambda: convert.carry(state, old, old, adam_jax.lion(1e-3)),
        "pattern must match": lambda: convert.reset(state, ADAMW, "head/.*"),
        "Write convert.carry(state": lambda: convert.from_optax(
            state, old, adam_jax.groups(adam_jax.adamw, {"w": None}, learning_rate=1e-3)
        ),
    }
    for words, call in cases.items():
        assert words in raised(call)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_reset(dtype):
    tx = adam_jax.with_hyperparams(adam_jax.yogi)(1e-2, mu_dtype=dtype)
    params = {"head": {"w": jnp.ones((64, 128))}, "body": jnp.ones((64, 128))}
    start = tx.init(params)
    _, state = adam_jax.step(tx, params, start, params)
    one = convert.reset(state, tx, "head/.*").inner_state[0]
    at_first, kept = start.inner_state[0], state.inner_state[0]
    for slot in ("mu", "nu"):
        for name, expected in (("head", at_first), ("body", kept)):
            assert_same_bits(getattr(one, slot)[name], getattr(expected, slot)[name])
    assert int(one.count) == 1
    again = convert.reset(state, tx, ".*")
    assert_same_bits(again.inner_state[0], at_first)
    assert int(again.count) == 1
