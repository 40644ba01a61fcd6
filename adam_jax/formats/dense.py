"""One number per element, in a floating-point dtype; the dtype of a leaf, the wider of two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Leaf, PyTree, Stored
from adam_jax.formats.base import Format, Refusal, SlotPolicy
from adam_jax.slots import Slot
from adam_jax.validation import printed


def is_floating(x: Leaf) -> bool:
    """Whether this is a parameter that steps move, or its gradient; Python numbers are.

    Integers, booleans and keys are not: they have no gradient (at most float0) and no state. Nor
    are 8-bit floating-point numbers, such as frozen weights below LoRA.
    """
    return is_inexact(x) and getattr(getattr(x, "dtype", None), "itemsize", 4) > 1


def is_inexact(x: Leaf) -> bool:
    """Whether this is a floating-point number, of any width; Python numbers are."""
    dtype = getattr(x, "dtype", None)
    return dtype is None or _is_inexact(dtype)


def leaf_dtype(param: Leaf) -> Leaf:
    """The floating-point dtype of a leaf; JAX's default one for a Python number, even an int.

    It is a TypeError if the leaf is an array of integers or booleans; the caller adds its path.
    """
    dtype = getattr(param, "dtype", None)
    if dtype is None:
        if not isinstance(param, (bool, int, float, complex)):
            raise TypeError(f"object ({printed(param)})")
        dtype = jnp.result_type(complex if isinstance(param, complex) else float)
    elif not isinstance(param, jax.Array):  # NumPy's float64 is JAX's float32, unless x64 is on.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not _is_inexact(dtype):
        raise TypeError(str(dtype))
    if jnp.dtype(dtype).itemsize == 1:
        raise ValueError(
            f"parameters and gradients must have 16 bits or more, got {jnp.dtype(dtype).name}: keep"
            f" them in bfloat16 or float32, and cast the parameters in the model."
        )
    return dtype


# Called for every leaf while tracing; JAX's dtype lattice takes 10 us.
_is_inexact = functools.cache(lambda dtype: jnp.issubdtype(dtype, jnp.inexact))


def in_range(x: jax.Array, dtype: DType) -> jax.Array:
    """x, its finite elements clipped to the range of another dtype; complex x is unchanged.

    An average forgets a clipped number at its rate, but never forgets infinity.
    """
    if jnp.iscomplexobj(x) or jnp.issubdtype(dtype, jnp.complexfloating):
        return x
    largest = float(jnp.finfo(dtype).max)
    if largest >= float(jnp.finfo(x.dtype).max):
        return x
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)


@functools.cache
def wider_dtype(first: Leaf, second: Leaf) -> Leaf:
    """The dtype that holds the numbers of both, even where strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


@dataclasses.dataclass(frozen=True)
class Dense(Format):
    """Each element rounded to the nearest number of `dtype`."""

    dtype: np.dtype
    unit = 1

    def __str__(self) -> str:
        return str(self.dtype)

    @property
    def rounds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dtype.itemsize < 4

    def refuses(self, slot: Slot) -> Refusal | None:
        if not slot.magnitude or self.dtype != jnp.float16:
            return None
        return Refusal(
            "float16 (adam_jax.stochastic(jnp.bfloat16) has 2 bytes too), whose smallest number,"
            " 6e-8, is the square of a gradient of 2e-4, so that updates can be of any size",
            instead="jnp.float32",
        )

    def init(self, param: jax.Array, start: float) -> jax.Array:
        return jax.lax.full_like(param, start, self.dtype)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        if jnp.iscomplexobj(x) and not jnp.issubdtype(self.dtype, jnp.complexfloating):
            raise ValueError(
                f"mu_dtype must be complex for a complex gradient, got {self.dtype.name}, which"
                f" would drop its imaginary part: write mu_dtype=jnp.complex64, or leave it out."
            )
        return jax.lax.convert_element_type(in_range(x, self.dtype), self.dtype)

    def decode(self, stored: jax.Array, dtype: DType) -> jax.Array:
        # Optax and its checkpoints store the squares of complex gradients in a complex array.
        if jnp.iscomplexobj(stored) and not jnp.issubdtype(dtype, jnp.complexfloating):
            stored = jnp.real(stored)
        return jax.lax.convert_element_type(stored, dtype)

    def shape(self, stored: jax.Array) -> tuple[int, ...]:
        return np.shape(stored)

    def shardings(self, stored: jax.Array, sharding: NamedSharding) -> PyTree:
        return jax.tree.map(lambda _: sharding, stored)


@dataclasses.dataclass(frozen=True)
class AtLeastFloat32(SlotPolicy):
    """The policy of `AT_LEAST_FLOAT32`."""

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Dense:
        dtype = wider_dtype(jnp.dtype(leaf_dtype(param)), jnp.dtype(jnp.float32))
        return Dense(jnp.finfo(dtype).dtype if slot.magnitude else dtype)

    def __repr__(self) -> str:
        return "AT_LEAST_FLOAT32"


AT_LEAST_FLOAT32 = AtLeastFloat32()
"""The parameter's own dtype, or float32 for 16-bit parameters: the default of every slot.

bfloat16 has 8 significant bits: an average that moves by 0.1 % of its value per step stops
changing. float16 has no numbers under 6e-8, the square of a gradient of 2e-4, so it stores no
magnitudes.
"""


def format_of(stored: Stored) -> Format | None:
    """The format of a stored slot, read from its stored form; None for an empty slot.

    The state determines the format, not the user's setting. So dtypes never change between steps,
    even in a state from an Optax checkpoint.
    """
    # Most are arrays, and a failed getattr on a tracer is slow.
    own = None if isinstance(stored, jax.Array) else getattr(stored, "format", None)
    if isinstance(own, Format):
        return own
    return Dense(stored.dtype) if hasattr(stored, "dtype") else None
