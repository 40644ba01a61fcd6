"""On a CPU leaves share what they need for moments of few bits."""

import pytest

from tests.catalogue import temporaries


@pytest.mark.bits
def test_on_one_cpu_leaves_share_their_temporaries():
    """8 bytes per parameter of two leaves at a time, not of all 12; and each is stored once."""
    assert temporaries.of_eight_bits(devices=1) < 1.8


@pytest.mark.bits
def test_xla_needs_turns():
    """Among two devices leaves take no turns."""
    assert temporaries.of_eight_bits(devices=2) > 6, "adam_jax/xla/turns.py can go"
