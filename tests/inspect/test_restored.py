"""`check_state` names what is wrong with a restored state, and finds nothing in good ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.inspect import check_state
from tests.catalogue import MEMBERS, few
from tests.catalogue.low_precision import MOMENTS, WEIGHTS
from tests.catalogue.recipes import RECIPES
from tests.catalogue.runs import raised
from tests.catalogue.sharded import TRANSFORMATIONS, on

pytestmark = pytest.mark.usefixtures("standard_promotion")

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 100)
GOOD = {
    **{member.name: member.alias(SCHEDULE) for member in MEMBERS},
    **{f"moments {name}": adam_jax.adamw(1e-2, mu_dtype=mu, nu_dtype=nu)
       for name, (mu, nu) in MOMENTS.items()},
    **{f"weights {name}": wrap(adam_jax.adamw(1e-2)) for name, wrap in WEIGHTS.items()},
    **{f"recipe {name}": make() for name, (make, _) in RECIPES.items()},
    **{f"on 8 devices, {name}": tx for name, tx in TRANSFORMATIONS.items()},
    "schedule-free": adam_jax.schedule_free_adamw(1e-2),
    "adamh": adam_jax.adamh(1e-2, 1e-3),
    "hyperparams": adam_jax.with_hyperparams(adam_jax.adamw)(SCHEDULE),
    "scheduled b2": adam_jax.adamw(1e-2, b2=adam_jax.schedules.power_law_schedule(0.8)),
    "groups": adam_jax.groups({"w": optax.contrib.muon(1e-2), ".*": adam_jax.adamw(SCHEDULE)}),
    "offload": adam_jax.sharding.offload(adam_jax.adamw(1e-2, mu_dtype=jnp.int8)),
    "telemetry": adam_jax.telemetry(adam_jax.skip_nonfinite(adam_jax.adamw(1e-2)), every=2),
}  # fmt: skip
assert len(GOOD) > 40
ONES = {"w": jnp.ones((64, 128)), "b": jnp.ones(128), "deep": {"k": jnp.ones((8, 2, 3))}}


@functools.cache
def trained(name, steps=8):
    """A transformation, parameters, the state after some steps, and gradients."""
    tx, dtype = GOOD[name], jnp.bfloat16 if name.startswith("weights") else jnp.float32
    rng = np.random.default_rng(0)

    def draw(scale):
        return jax.tree.map(lambda p: jnp.asarray(scale * rng.normal(size=p.shape), dtype), ONES)

    params, grads = draw(1.0), draw(1e-3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = on(mesh, params) if "devices" in name else params
    state = tx.init(params)
    if "optax." in name:  # It puts counts on one device.
        state = on(mesh, state)
    step = jax.jit(functools.partial(adam_jax.step, tx))
    assert check_state(state, params, tx, step=0) == ()
    for t in range(steps):
        grads = draw(1e-3)
        bad = t == 3 and any(word in name for word in ("skip", "everything", "telemetry"))
        given = jax.tree.map(lambda g: g * jnp.nan, grads) if bad else grads
        params, state = step(given, state, params)
    return tx, params, state, grads


FEW = ("adamw", "moments int8", "recipe everything", "on 8 devices, 8 bits", "groups", "telemetry")


@few("name", GOOD, quick=FEW)
def test_a_good_state_has_no_faults(name):
    tx, params, state, grads = trained(name)
    accumulates = any(word in name for word in ("accumulate", "everything", "optax inside"))
    assert check_state(state, params, tx, None if accumulates else 8, grads, raise_on="any") == ()


def at(change, *paths):
    """Changes arrays of a state."""

    def changed(state):
        flat, treedef = jax.tree.flatten_with_path(state)
        names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in flat]
        assert {*paths} <= {*names}
        pairs = zip(names, flat, strict=True)
        return treedef.unflatten([change(x) if name in paths else x for name, (_, x) in pairs])

    return changed


def of(tx, params=ONES):
    """The state of another transformation, or of other parameters."""
    return lambda state: tx.init(params)


ZERO, NAN, CODES = jnp.zeros_like, (lambda x: x * jnp.nan), "0/mu/w/codes_int8_power2_block128"
MU, NU = ([f"0/{slot}/{leaf}" for leaf in ("w", "b", "deep/k")] for slot in ("mu", "nu"))
OTHERS = ONES | {"w": jnp.ones((64, 8))}
SMALL = adam_jax.adamw(SCHEDULE, mu_dtype=jnp.int8)
FROZEN = adam_jax.groups(adam_jax.adamw, {"w": None}, learning_rate=SCHEDULE)
PLANTED = {
    "fresh moments, old counts": ("adamw", at(ZERO, *MU, *NU), "moments", "0/mu"),
    "old moments, fresh counts": ("adamw", at(ZERO, "0/count", "2/count"), "moments", "0/mu/b"),
    "one fresh count": ("adamw", at(ZERO, "0/count"), "counts", "0/count"),
    "one update late": ("moments int8", at(lambda x: x - 1, "0/count"), "step", "0/count"),
    "one leaf anew": ("adamw", at(ZERO, "0/mu/w", "0/nu/w"), "size", "0/nu/w"),
    "a lost second moment": ("adamax", at(ZERO, "0/nu/b"), "size", "0/nu/b"),
    "a loss scale": ("adamw", at(lambda x: x * 2.0**32, *NU), "size", "0/nu/b"),
    "another member": ("adamw", of(adam_jax.adabelief(SCHEDULE)), "structure", "0"),
    "other wrappers": ("adamw", of(adam_jax.accumulate(GOOD["adamw"], 2)), "structure", ""),
    "a frozen leaf": ("adamw", of(FROZEN), "structure", "0/mu/w"),
    "another format": ("adamw", of(SMALL), "structure", "0/mu/w"),
    "other parameters": ("adamw", of(GOOD["adamw"], OTHERS), "structure", "0/mu/w"),
    "NaN in an average": ("recipe ema", at(NAN, "1/ema/b"), "nonfinite", "1/ema/b"),
    "NaN in a scale": ("moments int8", at(NAN, "0/mu/w/scale"), "nonfinite", "0/mu/w"),
    "an unused code": ("moments int8", at(lambda x: x * 0 - 128, CODES), "range", "0/mu/w"),
    "a negative square": ("adamw", at(jnp.negative, "0/nu/b"), "range", "0/nu/b"),
    "counts on one device": (
        "on 8 devices, adamw", at(lambda x: jnp.asarray(int(x)), "0/count"), "devices", "0/count"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named(fault):
    name, plant, kind, where = PLANTED[fault]
    tx, params, state, grads = trained(name)
    found = {(f.kind, f.where) for f in check_state(plant(state), params, tx, 8, grads)}
    kinds = {own for own, _ in found}
    assert (kind, where) in found, found
    assert kinds - {kind} <= {"step", "counts", "size", "moments"}, found
    message = raised(lambda: check_state(plant(state), params, tx, 8, grads, raise_on=[kind]))
    assert f"{kind}: " in message


def test_what_skipped_steps_and_late_groups_may_count():
    tx, params, state, grads = trained("telemetry")
    assert check_state(state, params, tx, 8) == check_state(state, params, tx, 7) == ()
    more = state._replace(count=state.count + 1)
    assert [f.kind for f in check_state(more, params, tx)] == ["counts"]
    assert "raise_on must be" in raised(lambda: check_state(state, params, tx, raise_on="nan"))
    placed = {"w": jax.device_put(ONES["w"], jax.devices()[1]), "b": ONES["b"]}
    assert check_state(GOOD["adamw"].init(placed), placed, GOOD["adamw"]) == ()
    two = adam_jax.groups({"w": GOOD["adamw"], ".*": GOOD["adamw"]})
    late = at(lambda x: x + 9, *(f"inner_states/w/inner_state/{i}/count" for i in (0, 2)))
    assert {f.kind for f in check_state(late(two.init(ONES)), ONES, two)} == {"moments"}
