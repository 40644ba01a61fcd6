"""A table of the factors of muP and CompleteP for each leaf."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from adam_jax._types import Params, PyTree
from adam_jax.columns import aligned
from adam_jax.engine.trees import without_numbers
from adam_jax.transfer.growth import Growth, growths
from adam_jax.transfer.mup import factors_of
from adam_jax.validation import check_number


@dataclasses.dataclass(frozen=True)
class MupRow:
    """One leaf, or the same leaf of several layers.

    Attributes:
      path: of the leaf, with "#" for the number of a layer.
      count: the number of leaves in the row.
      base_shape: the shape in the base model.
      shape: its own.
      role: "hidden" if both sides grow, "input" or "output" if one does, "vector" if it has one
        axis, which grows, "fixed" if nothing grows.
      learning_rate: the factor of the learning rate.
      eps: the factor of ε.
      weight_decay: the factor of decoupled weight decay.
      initial_rms: the root mean square of the initial values, relative to the base model's.
    """

    path: str
    count: int
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    role: str
    learning_rate: float
    eps: float
    weight_decay: float
    initial_rms: float


@dataclasses.dataclass(frozen=True)
class MupTable:
    """Roles and factors of all leaves; it prints as a table followed by the hints.

    Attributes:
      rows: in the order of the leaves.
      hints: sentences about the initial values and the forward pass.
    """

    rows: tuple[MupRow, ...]
    hints: tuple[str, ...]

    def __str__(self) -> str:
        head = ["", "base", "shape", "role", "learning rate", "eps", "weight decay", "initial RMS"]
        lines = [head]
        for row in self.rows:
            name = row.path if row.count == 1 else f"{row.path} ({row.count} of them)"
            numbers = (row.learning_rate, row.eps, row.weight_decay, row.initial_rms)
            shapes = [str(list(row.base_shape)), str(list(row.shape))]
            lines.append([name, *shapes, row.role, *map(readable, numbers)])
        return "\n".join(["factors", aligned(lines), "", *self.hints])


def mup_table(
    base: PyTree,
    params: Params,
    *,
    layers: str | None = None,
    alpha: float = 1.0,
    outputs_last: bool = True,
) -> MupTable:
    """Shows, before any training, what `mup` does with each leaf and what is left to the model.

    Args:
      base: the parameters of the small model, or their shapes.
      params: those of the model to train, or their shapes.
      layers: a regular expression for leaves whose first axis is that of layers; see `mup`.
      alpha: the exponent of the residual factor, 1/2 to 1.
      outputs_last: kernels are [inputs, outputs]; False for [outputs, inputs].

    Returns:
      The table to print, with the numbers in `rows`.

    Raises:
      ValueError: as in `mup`.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> def init(width):
      ...     return {"in": jnp.ones((784, width)), "out": jnp.ones((width, 10))}
      >>> base, params = (jax.eval_shape(lambda: init(width)) for width in (64, 1024))
      >>> print(adam_jax.transfer.mup_table(base, params))
      factors
                base        shape    role  learning rate   eps  weight decay  initial RMS
      in   [784, 64]  [784, 1024]   input              1  1/16             1            1
      out   [64, 10]   [1024, 10]  output              1  1/16             1            1
      <BLANKLINE>
      Initial values: transfer.mup_init(params, base).
      Multiply the output of `out` by 1/16: transfer.output_factor(1024, 64).
      Scores of attention: times transfer.attention_scale(head_size, base_head_size).
    """
    alpha = check_number("alpha", alpha, 0.5, 1.0, closed=True, instead="1.0 is CompleteP")
    found = growths(base, params, layers, outputs_last)
    alike: dict[Growth, list[Growth]] = {}
    for g in found:
        kind = without_numbers(g.path)
        alike.setdefault(dataclasses.replace(g, path=kind, base_path=kind), []).append(g)
    rows = tuple(_row(its, alpha) for its in alike.values())
    hints = _hints(list(zip(rows, alike, strict=True)), layers, alpha, outputs_last)
    return MupTable(rows, tuple(hints))


def _row(its: Sequence[Growth], alpha: float) -> MupRow:
    g, factors = its[0], factors_of(its[0], alpha)
    path = _common(x.path for x in its)
    initial = 1 / math.sqrt(g.hidden_inputs)
    return MupRow(path, len(its), g.base_shape, g.shape, g.role, *factors, initial)


def _common(paths: Iterable[str]) -> str:
    """The common path, with "#" where the paths differ: `Block_#/Dense_0/kernel`."""
    parts = [re.split(r"(\d+)(?=/|$)", path) for path in paths]
    return "".join(x[0] if len(set(x)) == 1 else "#" for x in zip(*parts, strict=True))


def _hints(
    rows: Sequence[tuple[MupRow, Growth]], layers: str | None, alpha: float, outputs_last: bool
) -> Iterator[str]:
    """Sentences about what the model has to apply itself."""
    wider = [(row.path, g) for row, g in rows if row.role != "fixed"]
    deeper = dict.fromkeys(g.layers for _, g in rows if g.layers and g.depth != 1)
    if not wider and not deeper:
        yield "Nothing grows: every factor is 1."
        return
    if wider:
        where = "" if layers is None else f", layers={layers!r}"
        order = "" if outputs_last else ", outputs_last=False"
        yield f"Initial values: transfer.mup_init(params, base{where}{order})."
    outputs = [(path, g) for path, g in wider if g.role == "output"]
    for path, g in outputs:
        unless = "" if outputs_last or len(g.shape) != 2 else ", unless it is an embedding,"
        yield f"Multiply the output of `{path}`{unless} by {_output_factor(g)}."
    if not outputs:
        tied: dict[str, list[str]] = {}
        for path, g in wider:
            if g.role == "input" and len(g.shape) == 2:
                tied.setdefault(_output_factor(g), []).append(f"`{path}`")
        for factor, paths in tied.items():
            which = paths[0] if len(paths) == 1 else f"one of {', '.join(paths)}"
            yield f"No leaf is an output. If {which} makes the logits, multiply them by {factor}."
    for own, base in deeper:
        exponent = "" if alpha == 1 else f", {alpha:g}"
        factor = readable((base / own) ** alpha)
        call = f"transfer.residual_factor({own}, {base}{exponent})"
        yield f"Multiply the output of each residual block by {factor}: {call}."
    if wider:
        yield "Scores of attention: times transfer.attention_scale(head_size, base_head_size)."


def _output_factor(g: Growth) -> str:
    """The factor of an output layer, and the call that returns it, from the growing axes."""
    axes = [(n, m) for n, m in zip(g.shape, g.base_shape, strict=True) if n != m]
    width, base_width = (math.prod(x[k] for x in axes) for k in (0, 1))
    return f"{readable(base_width / width)}: transfer.output_factor({width}, {base_width})"


def readable(x: float) -> str:
    """A factor as a fraction or as one over a root, if possible: 1/16, 3/2, 1/√2."""
    for root, y in (("", x), ("√", x**2)):
        larger = Fraction(max(y, 1 / y)).limit_denominator(100 if not root else 1)
        if math.isclose(larger, max(y, 1 / y), rel_tol=1e-9):
            n, m = (larger.numerator, larger.denominator)[:: 1 if y >= 1 else -1]
            above = f"{root}{n}" if n != 1 else "1"
            return above if m == 1 else f"{above}/{root}{m}"
    return f"{x:.4g}"
