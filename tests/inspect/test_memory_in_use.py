"""The memory of a step beyond its arguments, per device."""

import collections
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adam_jax
from adam_jax import adamw
from adam_jax.inspect import bytes_per_parameter, report
from adam_jax.inspect.memory import planned
from tests.catalogue.scripts import run
from tests.catalogue.sharded import assert_placed

pytestmark = pytest.mark.bits

int8 = adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)


def test_nothing_is_allocated():
    """16 TB, which no test machine has; small arrays are not allocated either."""
    params = {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    before = {id(x) for x in jax.live_arrays()}
    assert bytes_per_parameter(params, int8).parameters == 4 * 2**40
    found = report(params, adamw(1e-3))
    assert found.model.per_parameter.total == pytest.approx(16)
    assert found.temporaries < 1000
    assert {id(x) for x in jax.live_arrays()} <= before


def test_a_report_of_a_step_of_the_run():
    n = 1000
    params = {"w": jax.ShapeDtypeStruct((n, n), jnp.float32)}
    tx = adamw(1e-3)

    def train_step(params, state, x):
        def loss(p):
            return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]))

        value, grads = jax.value_and_grad(loss)(params)
        return *adam_jax.step(tx, grads, state, params), value * jnp.ones(1234)

    batch = jnp.ones((2 * n, n))
    found = report(params, tx, step=jax.jit(train_step), args=(batch,))
    assert found.arguments == 12 * n * n + 4 + batch.nbytes
    assert found.temporaries >= batch.nbytes > report(params, tx).temporaries
    assert 4 * 1234 <= found.results <= 4 * 1234 + 8 * 8


def test_what_fits_in_nothing_donated_is_a_result():
    """Moments of another shape cannot reuse donated memory; JAX's warning becomes a figure."""
    params, tx = {"w": jax.ShapeDtypeStruct((100, 100), jnp.float32)}, adamw(1e-3)

    def step(params, state, grads):
        params, state = adam_jax.step(tx, grads, state, params)
        return params, jax.tree.map(lambda x: x[:50] if x.ndim else x, state)

    assert report(params, tx).results < 100 < 2 * 4 * 5_000
    assert 2 * 4 * 5_000 <= report(params, tx, step=step).results <= 2 * 4 * 5_000 + 100


def test_a_step_that_does_not_read_its_gradients():
    params = {"w": jax.ShapeDtypeStruct((100, 100), jnp.float32)}
    found = report(params, adamw(1e-3), step=lambda params, state, grads: (params, state))
    assert found.arguments == found.model.total


@pytest.mark.slow
@pytest.mark.parametrize("spec", [("d", None), (None, "d"), ()], ids=["rows", "columns", "copies"])
def test_sharded(spec):
    """512 columns on 8 devices are 64 for each, which is also the block length."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    params = {"w": jax.device_put(jnp.ones((128, 512)), sharding)}
    grads, state = params, int8.init(params)
    predicted = bytes_per_parameter(params, int8)
    n, block = 128 * 512, 64 if spec == (None, "d") else 128
    assert predicted.groups["w"].state == 2 * n + 2 * 4 * n // block
    described = {"w": jax.ShapeDtypeStruct((128, 512), jnp.float32, sharding=sharding)}
    assert bytes_per_parameter(described, int8) == predicted
    # The leaves and the count on each device. The gradients are the parameters here.
    w, copies = predicted.groups["w"], 1 if spec else 8
    each = copies * (w.total - w.gradients) // 8
    live = collections.Counter()
    for x in jax.tree.leaves((params, state)):
        live.update({shard.device: shard.data.nbytes for shard in x.addressable_shards})
    assert sorted(live.values()) == [each + 4] * 8
    state = [x for x in jax.tree.leaves(state) if x.ndim]
    expected = [x for x in jax.tree.leaves(planned(described, int8, None)[2]) if x.ndim]
    assert_placed(state, [x.sharding for x in expected])
    # XLA's own sum for one device.
    assert report(described, int8, grads=grads).arguments == copies * w.total // 8 + 4


@pytest.mark.slow
def test_the_benchmark_runs():
    printed = run("memory", "--size", "500_000", "--only", "of 8")
    rows = [line[2:-2].split(" | ") for line in printed.splitlines() if line.startswith("| bf")]
    assert len(rows) == 3
    for _, params, grads, state, predicted, live, held, _, target in rows:
        assert predicted == live
        assert float(live) == pytest.approx(float(params) + float(grads) + float(state), abs=2e-3)
        assert math.floor(100 * float(live)) / 100 <= float(target.removeprefix("<= "))
        assert float(held) > 0.5 * float(live)
