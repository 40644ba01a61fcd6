"""On one CPU device, leaves share the temporaries of quantized moments."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax
from tests.catalogue import temporaries


@pytest.mark.slow
@pytest.mark.bits
def test_on_one_cpu_leaves_share_their_temporaries():
    """8 bytes per parameter for two of the 12 leaves at a time; each temporary is stored once."""
    assert temporaries.of_eight_bits(devices=1) < 1.8


@pytest.mark.bits
def test_xla_needs_turns():
    """On two devices, leaves are not stepped in turn."""
    assert temporaries.of_eight_bits(devices=2) > 6, "adam_jax/xla/turns.py can go"


def test_a_host_with_one_device_traces_for_a_mesh_of_many(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    w = jax.ShapeDtypeStruct((16, 512), jnp.float32, sharding=split)
    tx = adam_jax.adamw(1e-3, nu_dtype=jnp.int8)
    with jax.set_mesh(mesh):
        new, _ = jax.eval_shape(tx.step, w, jax.eval_shape(tx.init, w), w)
    assert new.sharding.spec == PartitionSpec("data", None)
