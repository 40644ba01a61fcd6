"""The low-precision benchmarks run, and their codecs of other libraries match those libraries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.precision.codecs import BITSANDBYTES, FLASH, TORCHAO, dynamic_map, peers
from tests.catalogue.scripts import tables

pytestmark = pytest.mark.slow


def test_bitsandbytes_map():
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    assert len(set(signed.tolist())) == len(set(unsigned.tolist())) == 256
    assert signed[signed > 0].min() == pytest.approx(5.5e-7)
    assert unsigned[unsigned > 0].min() == pytest.approx(3.25e-7)
    assert 1 in signed and -1 not in signed and 0 in signed and 0 in unsigned
    # All values except 0 and 1 occur with both signs.
    assert np.array_equal(np.sort(-signed[signed < 0]), signed[(signed > 0) & (signed < 1)])


@pytest.mark.parametrize("signed, slot", [(True, 0), (False, 1)])
def test_bitsandbytes_codes_are_the_nearest(signed, slot):
    fmt = peers()[BITSANDBYTES][slot]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 100)) * 10 ** rng.uniform(-8, 0, (7, 100))
    x = (x if signed else x * x).astype(np.float32)
    stored = fmt.encode(jnp.asarray(x))
    blocks = np.pad(x.ravel(), (0, 3 * 256 - x.size)).reshape(3, 256)
    scale = np.abs(blocks).max(axis=1)
    np.testing.assert_array_equal(stored.scale, scale)
    shares = (blocks / scale[:, None]).ravel()[: x.size]
    nearest = np.abs(shares[:, None].astype(float) - dynamic_map(signed)).argmin(axis=1)
    if signed:  # No negative number is quantized to zero.
        nearest -= (dynamic_map(True)[nearest] == 0) & (shares < 0)
    np.testing.assert_array_equal(np.ravel(stored.codes), nearest)
    np.testing.assert_array_equal(fmt.shape(stored), x.shape)
    back = fmt.decode(stored, jnp.float32)
    assert np.all(np.signbit(back) == np.signbit(x))
    again = fmt.encode(back)
    np.testing.assert_array_equal(again.codes, stored.codes)


def test_flashoptim_codes():
    mu, nu = peers()[FLASH]
    y = np.random.default_rng(0).uniform(-1, 1, 64).astype(np.float32)
    y[[0, 32]] = 1, -1
    stored = mu.encode(jnp.asarray(y))
    assert stored.scale.shape == (2,) and stored.scale.dtype == jnp.float16
    np.testing.assert_array_equal(stored.codes, np.floor(127 * 2 * y / (1 + abs(y)) + 0.5))
    # This codec has a zero, and its scales are at most 65504.
    small = nu.decode(nu.encode(jnp.array([1.0] * 31 + [1e-6])), jnp.float32)
    assert small[-1] == 0 and small[0] == 1
    assert not jnp.isfinite(nu.decode(nu.encode(jnp.full(32, 1e10)), jnp.float32)).any()


def test_torchao_codes_of_4_bits():
    mu, nu = peers()[TORCHAO]
    assert len(set(mu.numbers)) == len(set(nu.numbers)) == 16
    assert min(nu.numbers) == 1 / 16 and 0 in mu.numbers
    stored = jax.jit(mu.encode)(jnp.linspace(-1, 1, 128))
    assert stored.codes.dtype == jnp.uint4 and stored.scale.shape == (1,)


def test_update_errors(tmp_path):
    printed, (real, long) = tables("precision.updates", tmp_path)
    real, long = ({row["form"]: row for row in rows} for rows in (real, long))
    ours, theirs, flash = "adam_jax int8", BITSANDBYTES, FLASH
    assert all(f"| {name} |" in printed for name in (ours, theirs, flash))
    assert real[ours]["bytes"] == 2 + 8 / 128 and real[theirs]["bytes"] == 2 + 8 / 256
    assert 0 < real[ours]["mean_95"] < min(0.021, real[theirs]["mean_95"])
    # The full run has 2,500 steps, not 30: 1.14 there. The target is 1.3.
    assert long[ours]["beside"] < 1.32 < long[theirs]["beside"] < long[flash]["beside"]
    # Gradients scaled by a power of two change nothing, except where scales are float16.
    assert long[ours]["small"] == long[ours]["large"] == long[ours]["sigma_one"]
    assert math.isnan(long[flash]["large"]) and long[flash]["small"] != long[flash]["sigma_one"]


@pytest.mark.parametrize("model", ["text", "cnn"])
def test_training(model, tmp_path):
    picture = tmp_path / "losses.png"
    options = ["--seeds", "1", "--model", model, "--plot", str(picture)]
    printed, (usual, slow) = tables("precision.training", tmp_path, *options)
    exact, residual = usual
    assert exact["within"] and exact["bytes"] == pytest.approx(12, abs=0.001)
    assert residual["bytes"] == pytest.approx(12, abs=0.001)
    assert 0 != residual["apart"] == pytest.approx(0, abs=0.01)
    slow_exact, nearest = slow
    assert slow_exact["unmoved"] < 0.1 < 0.5 < nearest["unmoved"]
    assert nearest["loss"] > slow_exact["loss"] > exact["loss"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    if model == "text":
        assert "bit for bit, 5 steps: True\n" in printed
