"""A second moment stored as the means of its rows and of its columns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Function, Leaf, PyTree
from adam_jax.formats.base import Format, Refusal, SlotPolicy, exported_form, filled, whole_along
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.numerics import summed
from adam_jax.slots import Slot
from adam_jax.validation import check_integer


@exported_form
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowAndColumnMeans:
    """The stored form of `RowsAndColumns`: the leaf's shape without the axis averaged over."""

    rows: jax.Array
    columns: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class RowsAndColumns(Format):
    """vᵢⱼ ≈ rᵢ·cⱼ / mean(r), with r the means of the rows and c those of the columns.

    Of all outer products it is the nearest to a given nonnegative matrix, in the generalised
    Kullback-Leibler divergence. Its own row and column means are r and c again, so decoding and
    encoding changes nothing, and an average of matrices has the averages of their means.

    A row of zeros decodes to zeros. A NaN makes the whole matrix NaN. An infinite gradient makes
    NaN updates in its step, and is stored as the largest square.

    Axes are counted from the last, -1; others than these two index separate matrices.
    """

    row_axis: int  # The earlier of the two.
    column_axis: int
    dtype: np.dtype  # Of both means, float32 or wider.
    linear = True

    def refuses(self, slot: Slot) -> Refusal | None:
        return None

    def init(self, param: jax.Array, start: float) -> RowAndColumnMeans:
        def means(axis: int) -> jax.Array:
            def part_of(sharding: NamedSharding) -> NamedSharding:
                return whole_along((axis,), sharding, param.ndim, dropped=True)

            shape = (*param.shape[:axis], *param.shape[param.ndim + axis + 1 :])
            return filled(shape, start, self.dtype, param, part_of)

        return RowAndColumnMeans(means(self.column_axis), means(self.row_axis), self)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> RowAndColumnMeans:
        x = jax.lax.convert_element_type(x, self.dtype)
        return RowAndColumnMeans(_mean(x, self.column_axis), _mean(x, self.row_axis), self)

    def averaged(
        self, stored: RowAndColumnMeans, term: jax.Array, average: Function
    ) -> RowAndColumnMeans:
        """`encode(average(decode(stored), term))`, without that average: `encode` is linear."""
        # XLA:GPU would store the average, 4 bytes per parameter of one leaf at a time. It does not
        # fuse the broadcast of the column means into their own reduction, not even in a separate
        # pass.
        new = self.encode(term)
        rows, columns = (
            jax.lax.convert_element_type(average(old, x), self.dtype)
            for old, x in ((stored.rows, new.rows), (stored.columns, new.columns))
        )
        return RowAndColumnMeans(rows, columns, self)

    def decode(self, stored: RowAndColumnMeans, dtype: DType) -> jax.Array:
        # The axis of rows once the axis of columns is gone.
        mean = jnp.expand_dims(_mean(stored.rows, self.row_axis + 1), self.row_axis + 1)
        # Divided first: products of the squares of small gradients underflow in float32.
        shares = stored.rows / jnp.where(mean == 0, 1, mean)
        columns = jnp.expand_dims(stored.columns, self.row_axis)
        products = jnp.expand_dims(shares, self.column_axis) * columns
        # A product may exceed every element of the matrix that it approximates.
        products = jnp.minimum(products, jnp.finfo(products.dtype).max / 4)
        return jax.lax.convert_element_type(products, dtype)

    def shape(self, stored: RowAndColumnMeans) -> tuple[int, ...]:
        rows, columns = np.shape(stored.rows), np.shape(stored.columns)
        position = len(rows) + 1 + self.column_axis
        return (*rows[:position], columns[self.column_axis], *rows[position:])

    def shardings(self, stored: RowAndColumnMeans, sharding: NamedSharding) -> PyTree:
        ndim = len(self.shape(stored))
        axes = dataclasses.replace(stored, rows=self.column_axis, columns=self.row_axis)
        return jax.tree.map(lambda x: whole_along((x,), sharding, ndim, dropped=True), axes)


def _mean(x: jax.Array, axis: int) -> jax.Array:
    """The mean along an axis, at most the square of the largest unclipped gradient.

    Terms and their sum may be infinite: before the sum, XLA:GPU would store the squares for each
    extra operation.
    """
    return jnp.minimum(summed(x, axis) / x.shape[axis], float(jnp.finfo(x.dtype).max) / 64)


@dataclasses.dataclass(frozen=True)
class Factored(SlotPolicy):
    """The second moment as the means of its rows and columns: n + m numbers instead of n·m.

        r ← b2·r + (1-b2)·mean_j(gᵢⱼ²)
        c ← b2·c + (1-b2)·mean_i(gᵢⱼ²)       vᵢⱼ = rᵢ·cⱼ / mean(r)

    For `nu_dtype=`. The two largest axes are factored, as in `optax.scale_by_factored_rms`. A leaf
    without two axes of `min_dim_size`, or with fewer elements than `min_size`, stays float32. If nu
    is a maximum and not an average of squares (AdaMax, `nu_max` in AMSGrad), only its means are
    kept.

    Differs from Adafactor in: a step reads b2·v + (1-b2)·g² before factoring it, so a gradient
    unlike its row and its column counts in its own step. Decay rates, ε, bias correction and
    clipping are those of the member. A spike in one element makes vᵢⱼ too small elsewhere, as in
    Adafactor: put `clip_by_global_norm` before the member.

    Attributes:
      min_dim_size: least size of both axes.
      min_size: leaves with fewer elements stay float32.

    Raises:
      ValueError: in `init`, use as `mu_dtype`: an average with both signs has no such factors.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(1e-3, nu_dtype=adam_jax.Factored())
      >>> nu = tx.init(jnp.ones((256, 1024)))[0].nu
      >>> print(nu.rows.shape, nu.columns.shape)
      (256,) (1024,)

    Reference: Shazeer & Stern 2018, Adafactor, section 3 and algorithm 4,
    https://arxiv.org/abs/1804.04235
    """

    min_dim_size: int = 128
    min_size: int = 4096

    def __post_init__(self) -> None:
        for argument, usual in (("min_dim_size", 128), ("min_size", 4096)):
            value = check_integer(argument, getattr(self, argument), 1, instead=f"{usual} is usual")
            object.__setattr__(self, argument, value)

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        if not slot.magnitude:
            raise ValueError(
                "Factored() is for averages of squares, and this slot has both signs, so the means"
                " of its rows say nothing about its elements: mu_dtype cannot be factored, write"
                " nu_dtype=adam_jax.Factored()."
            )
        dense = AT_LEAST_FLOAT32.resolve(param, slot, path)
        shape = np.shape(param)
        # Among equal axes the later ones, as in Optax.
        largest = np.argsort(shape, kind="stable")[-2:].tolist()
        small = len(largest) < 2 or math.prod(shape) < self.min_size
        if small or shape[largest[0]] < self.min_dim_size:
            return dense
        row, column = sorted(axis - len(shape) for axis in largest)
        return RowsAndColumns(row, column, dense.dtype)
