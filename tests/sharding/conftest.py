import jax
import pytest
from jax.sharding import AxisType


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return jax.make_mesh((8,), ("data",), axis_types=(request.param,))
