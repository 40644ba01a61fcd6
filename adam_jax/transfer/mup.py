"""Hyperparameters of a wider and deeper model from those of a small one: muP and CompleteP.

Yang et al. 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466
Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers,
https://arxiv.org/abs/2407.05872
Dey et al. 2025, Don't be lazy: CompleteP enables compute-efficient deep transformers,
https://arxiv.org/abs/2505.01618
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adam_jax._types import Function, Leaf, Params, PyTree
from adam_jax.core.member import Choice, Member, Stage
from adam_jax.core.trees import leaf_paths, without_numbers
from adam_jax.formats.dense import is_floating, leaf_dtype, wider_dtype
from adam_jax.inspect.tables import aligned
from adam_jax.modifiers import Modifiable, layers_of, modified
from adam_jax.numerics import root_mean_square
from adam_jax.rules.hyperparameters import Unit, rescaled, units_of
from adam_jax.transfer.growth import Growth, growths
from adam_jax.validation import check_number


def mup(
    tx: Modifiable, base: PyTree, params: Params, *, layers: str | None = None, alpha: float = 1.0
) -> Modifiable:
    r"""Trains a large model with the hyperparameters of a small one (muP, CompleteP).

    Let the input axes of a leaf be n times and its output axes m times as long as in the base
    model, and let the model have d times as many layers of its kind. Its hyperparameters are

        learning rate   α·d^(alpha-1) / n    n = 1 unless m grows too
        angle           α·d^(alpha-1) / √n   of `adamh`: relative to initial values, which are 1/√n
        ε               ε·d^(-alpha) / m     m: the width, for an output layer n
        weight decay    λ·n                  so that α·λ does not depend on the width

    The model applies the rest of the parametrization: `mup_init` scales the initial values; the
    logits are multiplied by 1/n, the output of each residual block by d^(-alpha), and the scores of
    attention by √(base head size) / (head size), which is the usual scale in the base model.
    `mup_table` shows roles and factors of the leaves. If nothing grows, every factor is 1.

    Args:
      tx: a transformation of this package with a learning rate, or a function that makes one, such
        as `adamw`. The first steps of `radam`, which do not divide yet, and the initial values of
        Yogi's accumulators have no factor.
      base: the parameters of the small model whose hyperparameters are known, or their shapes,
        `jax.eval_shape(init)`. It may have fewer layers, which are identified by the numbers in
        their paths (`blocks/3/kernel`, `Block_3/kernel`).
      params: those of the model to train, or their shapes.
      layers: a regular expression for the whole paths of leaves whose first axis counts layers
        (`jax.lax.scan` over blocks); None for those that `with_layers` declared to `tx`, if any:
        `mup(with_layers(adamw, "blocks/.*"), base, params)`. Such an axis must be named: it is an
        error only where a leaf grows unlike any kernel, [8, 64, 64] for [2, 16, 16].
      alpha: the exponent of the residual factor, 1/2 to 1. 1 is CompleteP.

    Returns:
      The transformation, or a function with the arguments of `tx`. The state is the member's own.
      `groups(mup(adamw, base, params), ...)` and `with_hyperparams(mup(adamw, base, params))` apply
      the factors too.

    Raises:
      ValueError: in this call, or when the transformation is made, trees that do not match, `l2`,
        an update that depends on the size of the parameters (`lamb`), or `mup` of `mup`; in `init`
        and `update`, other parameters.

    Differs from Microsoft's `mup` (`MuAdamW`) in: ε has a factor; axes follow JAX; the model
    applies its factors itself.

    Reference: Yang et al. 2022, table 8, for the learning rate; Dey et al. 2025, table 1, for
    depth, weight decay and ε; Everett et al. 2024 for an ε that falls with each layer's gradient.
    """
    alpha = _check_alpha(alpha)
    layers = layers_of(tx).expression if layers is None else layers
    its = growths(base, params, layers)
    factors = tuple((g.path, factors_of(g, alpha)) for g in its)
    return with_leaf_factors(tx, factors, "mup", _check_scalable)


class Factors(NamedTuple):
    """The factors of the numbers of one leaf.

    Attributes:
      learning_rate: of the learning rate.
      eps: of every ε in units of the gradient, and squared for those in units of its square.
      weight_decay: of decoupled weight decay that is multiplied by the learning rate.
    """

    learning_rate: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0


def factors_of(growth: Growth, alpha: float) -> Factors:
    """The factors of a leaf's hyperparameters."""
    depth, inputs = growth.depth, growth.hidden_inputs
    return Factors(depth ** (alpha - 1) / inputs, depth**-alpha / growth.width, inputs)


def with_leaf_factors(
    tx: Modifiable, factors: tuple[tuple[str, Factors], ...], name: str, check: Function
) -> Modifiable:
    """Multiplies the hyperparameters of each leaf by its own factors: more variants of a member."""

    def edit(member: Member) -> Member:
        if isinstance(member.choice, ByFactors):
            raise ValueError("tx must not have factors already: write mup or layer_decay once.")
        check(member)
        distinct = list(dict.fromkeys(its for _, its in factors))
        variants = [_scaled(stages, its) for stages in member.variants for its in distinct]
        table = tuple((path, distinct.index(its)) for path, its in factors)
        choice = ByFactors(table, len(distinct), member.choice)
        return dataclasses.replace(member, variants=tuple(variants), choice=choice)

    return modified(with_leaf_factors, tx, edit, name, factors=factors, name=name, check=check)


@dataclasses.dataclass(frozen=True)
class ByFactors(Choice):
    """Every variant of a member with each set of factors.

    Attributes:
      table: the index of each leaf's factors, by path.
      count: the number of sets of factors.
      inner: how the member chooses among its variants; None if it has one.
    """

    table: tuple[tuple[str, int], ...]
    count: int
    inner: Choice | None

    def variants(
        self, paths: Sequence[str], moving: Sequence[bool], check: bool
    ) -> list[int | None]:
        """The variant of each leaf."""
        table, found = dict(self.table), []
        inner = self.inner
        chosen = [0] * len(paths) if inner is None else inner.variants(paths, moving, check)
        for path, which in zip(paths, chosen, strict=True):
            if which is not None and path not in table:
                raise ValueError(
                    f"params must be those that mup was told of, {list(table)}, got a leaf at"
                    f" {path!r}: write mup(adamw, base, params)."
                )
            found.append(None if which is None else which * self.count + table[path])
        return found


def _scaled(stages: tuple[Stage, ...], factors: Factors) -> tuple[Stage, ...]:
    """The stages with their numbers multiplied by the factors."""
    units = {
        Unit.LEARNING_RATE: factors.learning_rate,
        Unit.ANGLE: factors.learning_rate * math.sqrt(factors.weight_decay),  # That is n.
        Unit.GRADIENT: factors.eps,
        Unit.GRADIENT_SQUARED: factors.eps**2,
        Unit.WEIGHT_DECAY: factors.weight_decay,
    }
    scaled = []
    for stage in stages:
        scaled.append(dataclasses.replace(stage, rule=rescaled(stage.rule, units)))
        if Unit.LEARNING_RATE in units_of(stage.rule):
            units[Unit.WEIGHT_DECAY] = 1.0  # Later decay is not multiplied by the learning rate.
    return tuple(scaled)


def check_learning_rate(member: Member) -> list[set[Unit]]:
    """Checks that a member has a learning rate; returns the units of its stages."""
    units = [units_of(stage.rule) for stage in member.stages]
    if not {Unit.LEARNING_RATE, Unit.ANGLE} & set().union(*units):
        raise ValueError("tx must have a learning rate, as adamw(1e-3) has: write the alias.")
    return units


def _check_scalable(member: Member) -> None:
    """Checks that all numbers of a member have a factor."""
    units = check_learning_rate(member)
    for k, (stage, its) in enumerate(zip(member.stages, units, strict=True)):
        if Unit.WEIGHT_DECAY in its and k < (member.main or 0):
            raise ValueError(
                "l2 must be None, as it has no factor for a wider model: write adamw and"
                " weight_decay."
            )
        if stage.rule.needs_params and not {Unit.WEIGHT_DECAY, Unit.ANGLE} & its:
            raise ValueError(
                f"tx must have an update that does not depend on the parameter's size, got"
                f" {type(stage.rule).__name__}: write adamw for lamb."
            )


def mup_init(params: Params, base: Params, *, layers: str | None = None) -> Params:
    """Scales initial values to the size that follows from the base model's.

        hidden:                                  RMS(θ) = RMS(θ_base) / √n
        input, output, bias, norm, embedding:    RMS(θ) = RMS(θ_base)

    n is the growth of the input axes. Any initializer works, however it depends on the width: each
    leaf is multiplied by the factor that gives it this root mean square. Zeros stay zeros, and ones
    stay ones.

    Args:
      params: initial values of the model.
      base: initial values of the base model, as arrays; of several layers the first is used, also
        of stacked ones.
      layers: as in `mup`.

    Returns:
      The scaled values, with the dtypes of `params`.

    Raises:
      ValueError: trees that do not match, or `base` has shapes instead of values.

    Differs from Microsoft's `mup` (`set_base_shapes`) in: that multiplies output layers by √n and
    leaves hidden ones unchanged, which is the same for initializers of variance 1 / inputs; sizes
    are measured here, so those of small leaves are exact only to 1/√(2·size).

    Reference: Yang et al. 2022, table 8.
    """
    values = dict(zip(leaf_paths(base, none_is_leaf=False), jax.tree.leaves(base), strict=True))
    for path, value in values.items():
        if isinstance(value, jax.ShapeDtypeStruct):
            raise ValueError(
                f"base must have initial values, got the shape {value.shape} at {path!r}:"
                f" initialize the base model."
            )

    def scaled(x: Leaf, growth: Growth) -> Leaf:
        if not is_floating(x):
            return x
        layered = len(growth.axes) < len(growth.shape)
        first = values[growth.base_path][:1] if layered else values[growth.base_path]
        wide, first = (jnp.asarray(y, wider_dtype(leaf_dtype(y), jnp.float32)) for y in (x, first))
        now = root_mean_square(wide, tuple(range(layered, wide.ndim)))  # Of each layer.
        wanted = root_mean_square(first) / math.sqrt(growth.hidden_inputs)
        known = (now > 0) & (wanted > 0)
        factor = jnp.where(known, wanted / jnp.where(known, now, 1), 1)
        with jax.numpy_dtype_promotion("standard"):  # A complex number times a real one.
            return (wide * factor).astype(leaf_dtype(x))

    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(scaled, leaves, growths(base, params, layers)))


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
    """Roles and factors of all leaves; it prints as a table.

    Attributes:
      rows: in the order of the leaves.
    """

    rows: tuple[MupRow, ...]

    def __str__(self) -> str:
        lines = [
            ["", "base", "shape", "role", "learning rate", "eps", "weight decay", "initial RMS"]
        ]
        for row in self.rows:
            name = row.path if row.count == 1 else f"{row.path} ({row.count} of them)"
            numbers = (row.learning_rate, row.eps, row.weight_decay, row.initial_rms)
            shapes = [str(list(row.base_shape)), str(list(row.shape))]
            lines.append([name, *shapes, row.role, *map(readable, numbers)])
        return f"factors\n{aligned(lines)}"


def mup_table(
    base: PyTree, params: Params, *, layers: str | None = None, alpha: float = 1.0
) -> MupTable:
    """Shows, before any training, what `mup` and `mup_init` do with each leaf.

    Args:
      base: as in `mup`, as are `params` and `alpha`.
      params: those of the model to train, or their shapes.
      layers: a regular expression for leaves whose first axis is that of layers.
      alpha: the exponent of the residual factor.

    Raises:
      ValueError: as in `mup`.
    """
    alpha = _check_alpha(alpha)
    alike: dict[Growth, list[str]] = {}
    for g in growths(base, params, layers):
        kind = without_numbers(g.path)
        alike.setdefault(dataclasses.replace(g, path=kind, base_path=kind), []).append(g.path)
    rows = []
    for g, paths in alike.items():
        parts = zip(*(re.split(r"(\d+)(?=/|$)", path) for path in paths), strict=True)
        path = "".join(x[0] if len(set(x)) == 1 else "#" for x in parts)
        shapes, rms = (g.base_shape, g.shape), 1 / math.sqrt(g.hidden_inputs)
        rows.append(MupRow(path, len(paths), *shapes, g.role, *factors_of(g, alpha), rms))
    return MupTable(tuple(rows))


def readable(x: float) -> str:
    """A factor as a fraction or as one over a root, if possible: 1/16, 3/2, 1/√2."""
    larger = max(x, 1 / x)
    fraction, square = Fraction(larger).limit_denominator(100), round(larger**2)
    if math.isclose(fraction, larger, rel_tol=1e-9):
        return str(fraction if x >= 1 else 1 / fraction)
    if math.isclose(square, larger**2, rel_tol=1e-9):
        return f"√{square}" if x >= 1 else f"1/√{square}"
    return f"{x:.4g}"


def _check_alpha(alpha: float) -> float:
    return check_number("alpha", alpha, 0.5, 1.0, closed=True, instead="1.0 is CompleteP")
