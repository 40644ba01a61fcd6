"""On one CPU device, leaves share the temporaries of quantized moments."""

import pytest

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
