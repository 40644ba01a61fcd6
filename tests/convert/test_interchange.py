"""Runs that start in one library and continue in another: 20 more steps are the same in both.

The runs are those of `benchmarks.interchange`, in float64.
"""

import importlib.util

import jax
import pytest

from benchmarks.interchange import __main__ as interchange
from benchmarks.interchange.conversions import LIBRARIES

pytestmark = pytest.mark.usefixtures("standard_promotion")


def conversions(library, words=("",)):
    if not importlib.util.find_spec(library):
        reason = f"{library} is in a group of its own: make test-peers"
        return [pytest.param(None, id=library, marks=pytest.mark.skip(reason=reason))]
    found = [c for c in LIBRARIES[library]() if any(word in c.name for word in words)]
    assert len(found) >= 6
    marks = [] if library == "optax" else [pytest.mark.peers]
    return [pytest.param(c, id=f"{c.way}, {c.name}".replace("`", ""), marks=marks) for c in found]


def agree(conversion, record_property):
    with jax.enable_x64(True):
        [(once, whole)] = interchange.differences(conversion, True)
    label = f"{conversion.way}, {conversion.name}"
    record_property("printed", f"20 steps apart, {label}: {once:.1e} after one, {whole:.1e} in all")
    return once, whole


OPTAX = ("adamw`", "amsgrad", "MultiSteps", "inject", "partition", "8 bits")


@pytest.mark.slow
@pytest.mark.parametrize("conversion", conversions("optax", OPTAX))
def test_optax(conversion, record_property):
    once, whole = agree(conversion, record_property)
    if "8 bits" in conversion.name:
        # Quantizing to 8 bits rounds. Dequantizing is exact; later steps in 8 bits round again.
        assert once < (0.05 if conversion.way == "from Optax" else 1e-12) and whole < 0.1
    elif "MultiSteps" in conversion.name:  # Optax's accumulator is float32 even here.
        assert once < 1e-6 and whole < 1e-6
    else:
        assert once < 1e-12 and whole < 1e-12


@pytest.mark.parametrize("conversion", conversions("torch"))
def test_pytorch(conversion, record_property):
    once, whole = agree(conversion, record_property)
    assert once < 1e-11 and whole < 1e-11
