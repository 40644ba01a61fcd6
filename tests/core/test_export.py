"""A training step is exported for other platforms, and read again."""

import jax.numpy as jnp
import pytest

from tests.catalogue import every_kind_of_state
from tests.catalogue.exported import train_from_the_file


@every_kind_of_state
def test_the_step_exported_for_three_platforms_goes_on_from_the_file(member):
    train_from_the_file(member, jnp.float32)


@pytest.mark.slow
@every_kind_of_state
def test_so_does_that_of_bfloat16_parameters(member):
    train_from_the_file(member, jnp.bfloat16)
