"""Modifiers: published improvements of Adam that apply to any member.

Each takes a transformation of this package and returns one (`cautious(adamw(1e-3))`), or takes the
function that makes it and returns such a function (`cautious(adamw)`), which `groups` and
`with_hyperparams` accept. Modifiers can be stacked. The state stays the member's own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import AnyTransformation, Function, Leaf, Named, Number
from adam_jax.core.foreign import Foreign
from adam_jax.core.member import Member, Stage
from adam_jax.core.stacked import Layers, LayersLike
from adam_jax.core.step import NoMember
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.numerics import exact, root, sign, squared
from adam_jax.pytrees import Label, frozen_pytree, static
from adam_jax.rules.adam import Direction
from adam_jax.rules.base import Modifier, Rule, View, with_parts
from adam_jax.rules.hyperparameters import (
    Relative,
    Scaled,
    Unit,
    numbers_of,
    units_of,
    with_numbers,
)
from adam_jax.validation import as_number, bound, check_number, is_factory, name_of
from adam_jax.xla.mosaic import arctan2

Modifiable = TypeVar("Modifiable", bound=Function | Transformation)


@dataclasses.dataclass(frozen=True)
class Factory:
    """Wraps a function. Unlike a closure, it compares and pickles by value.

    Attributes:
      factory: the wrapped function; its name, signature and docstring are kept.
    """

    factory: Function

    def __post_init__(self) -> None:
        made = self.factory
        vars(self).update(__name__=name_of(made), __doc__=made.__doc__, __wrapped__=made)

    def arguments(self, args: tuple[Any, ...], kwargs: Named) -> Named:
        """All arguments of the wrapped function by name, including defaults."""
        its = bound(self.factory, args, kwargs)
        its.apply_defaults()
        arguments = dict(its.arguments)
        for name, p in its.signature.parameters.items():
            if p.kind == p.VAR_KEYWORD:
                arguments |= arguments.pop(name)
        return arguments


@dataclasses.dataclass(frozen=True)
class ModifiedFactory(Factory):
    """A function that makes a modified transformation.

    Attributes:
      modifier: the modifying function, such as `cautious`.
      settings: the modifier's own arguments.
    """

    modifier: Function
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Leaf, **kwargs: Leaf) -> Transformation:
        """The modified transformation."""
        return self.modifier(self.factory(*args, **kwargs), **dict(self.settings))


def modified(
    modifier: Function,
    tx: AnyTransformation,
    edit: Callable[[Member], Member],
    called: str | None = None,
    **settings: Leaf,
) -> Any:
    """Edits the member in a transformation, or in what a function makes.

    Args:
      modifier: the function that was called: `modifier(tx, **settings)`.
      tx: its first argument.
      edit: returns the edited member.
      called: the modifier's public name; None for the function's own name.
      **settings: its other arguments.
    """
    if is_factory(tx):
        return ModifiedFactory(tx, modifier, tuple((k, as_number(x)) for k, x in settings.items()))
    body, name = body_of("tx", tx), called or modifier.__name__

    def renamed(member: Member) -> Member:
        return dataclasses.replace(edit(member), name=Label(f"{name}({member.name})"))

    try:
        return Transformation.around(body.edited(renamed))
    except NoMember:
        got = body if isinstance(tx, Transformation) else tx
        raise ValueError(
            f"tx must be a member of adam_jax, got {type(got).__name__}: write {name}(adamw(...)),"
            f" groups({name}(adamw), ...), with_hyperparams({name}(adamw)), with chain outermost."
        ) from None


def around_rule(change: Callable[[Any], Rule]) -> Callable[[Member], Member]:
    """Changes the rule of the member."""
    return lambda member: member.changed(main_stage(member), change)


def main_stage(member: Member) -> int:
    """The index of the stage with the accumulators."""
    if member.main is None:
        rules = ", ".join(type(stage.rule).__name__ for stage in member.stages)
        raise ValueError(f"tx must be a member with accumulators, as adamw(...) is, got {rules}.")
    return member.main


@frozen_pytree
class Cautious(Modifier):
    """u where it has the sign of g, divided by the share of such elements; 0 elsewhere."""

    reads_sums = True

    def update(self, leaf: View) -> Array:
        u = self.inner.update(leaf)
        aligned = jnp.real(u * jnp.conj(leaf.g)) > 0
        share = jnp.maximum(leaf.mean(aligned), LEAST_SHARE)
        # Not a select between u and 0: it would hide NaN, and LLVM contracts it in some loops.
        return u * jnp.where(aligned, 1 / share, 0)


# As in the authors' code. Their algorithm's d / (count + 1) would halve the step of a scalar.
LEAST_SHARE = 1e-3


def cautious(tx: Modifiable) -> Modifiable:
    """Drops the elements of the update whose sign disagrees with the newest gradient.

        φ = 1[u·g > 0]       u ← φ·u / mean(φ)

    mean(φ) is taken per leaf, and is at least 1e-3.

    Args:
      tx: a transformation of this package, or a function that makes one.

    Reference: Liang et al. 2024, Cautious Optimizers (https://arxiv.org/abs/2411.16085),
    algorithm 1, with the mean of its authors' code.
    """
    return modified(cautious, tx, around_rule(Cautious))


@frozen_pytree
class Grams(Modifier):
    """The magnitude of u with the sign of g."""

    @property
    def reads_sums(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.reads_sums

    def update(self, leaf: View) -> Array:
        return exact(sign(leaf.g) * jnp.abs(self.inner.update(leaf)))


def grams(tx: Modifiable) -> Modifiable:
    """Combines the magnitude of the member's update with the newest gradient's sign: |u|·sign(g).

    The average of the gradient determines only the magnitude. Where g is 0, the update is 0. For
    complex numbers sign(g) is g / |g|. Around `lion` the average has no effect, and the update is
    sign(g).

    Args:
      tx: a transformation of this package, or a function that makes one.

    Reference: Cao et al. 2024, Grams: Gradient Descent with Adaptive Momentum Scaling
    (https://arxiv.org/abs/2412.17107). Differs from the authors' code in: ε is the member's own;
    theirs is `eps_hat` of `adamw`.
    """
    return modified(grams, tx, around_rule(Grams))


@frozen_pytree
class ClipUpdateRms(Modifier):
    """u / max(1, RMS / threshold), with the RMS of the gradient divided as u is."""

    reads_sums = True

    threshold: Number

    def update(self, leaf: View) -> Array:
        u = self.inner.update(leaf)
        rms = root(leaf.mean(squared(self.inner.normalised(leaf, u))))
        return exact(u * (1 / jnp.maximum(1, rms / self.threshold)))


def clip_update_rms(tx: Modifiable, threshold: jax.typing.ArrayLike = 1.0) -> Modifiable:
    """Shortens steps where the gradient is larger than its running average predicts.

        u ← u / max(1, RMS(g / (√nû + eps)) / threshold)

    The RMS is taken per leaf. For a member without a second moment of its gradient (lion, adan,
    adopt) it is the RMS of u itself.

    Args:
      tx: a transformation of this package, or a function that makes one.
      threshold: the largest RMS that leaves the update unchanged, > 0.

    Reference: Wortsman et al. 2023, Stable and low-precision training for large-scale
    vision-language models (https://arxiv.org/abs/2304.13013), algorithm 2 (StableAdamW), after
    Shazeer & Stern 2018, section 6. Differs from it in: weight decay is not scaled down as well;
    the divisor is the member's own, where the paper always has √max(nû, eps²).
    """
    threshold = check_number("threshold", threshold, 1e-30, instead="the usual value is 1.0")
    change = functools.partial(ClipUpdateRms, threshold=threshold)
    return modified(clip_update_rms, tx, around_rule(change), threshold=threshold)


@frozen_pytree
class Atan2(Direction):
    """a·atan2(first, b·√second): close to first / √second where that is small, at most a·π/2.

    Everett et al. 2024, section 4.3 (Adam-atan2): no ε, and the update does not depend on the scale
    of the gradient, down to the smallest numbers.

    Attributes:
      a: the factor outside.
      b: the factor of the root.
      squared: second is a square; False if it is a magnitude, whose root is not taken.
    """

    a: Number
    b: Number
    squared: bool = static(default=True)

    def __call__(self, first: Array, second: Array) -> Array:
        divisor = self.b * (root(second) if self.squared else second)
        if not jnp.iscomplexobj(first):
            return self.a * arctan2(first, divisor)
        # Only the magnitude of a complex number is divided; its direction is kept.
        size = root(squared(first))
        return self.a * arctan2(size, divisor) * (first / jnp.where(size > 0, size, 1))


def atan2(
    tx: Modifiable, a: jax.typing.ArrayLike = 1.0, b: jax.typing.ArrayLike = 1.0
) -> Modifiable:
    """Replaces the division by an arc tangent, which needs no ε: u = a·atan2(mû, b·√nû).

    The update does not depend on the scale of the gradient, and is at most a·π/2.

    Args:
      tx: a transformation of this package, or a function that makes one; its ε are ignored.
      a: the factor of the update, ≥ 0. 4/π makes its largest value 2 and its usual value 1.
      b: the factor of the root, > 0.

    Raises:
      ValueError: `tx` does not divide (lion).

    Reference: Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers
    (https://arxiv.org/abs/2407.05872), section 4.3 (Adam-atan2).
    """
    a = check_number("a", a, instead="the usual value is 1.0")
    b = check_number("b", b, 1e-30, instead="the usual value is 1.0")

    def change(rule: Rule) -> Rule:
        new = with_parts(rule, lambda x: Atan2(a, b, x.squared) if isinstance(x, Direction) else x)
        if new is rule:
            raise ValueError(f"tx must divide by a root, and {type(rule).__name__} does not.")
        # Adamax and AdaBelief add ε to the accumulator.
        gradient = (Unit.GRADIENT, Unit.GRADIENT_SQUARED)
        return with_numbers(new, lambda unit, number: 0.0 if unit in gradient else number)

    return modified(atan2, tx, around_rule(change), a=a, b=b)


def with_kernel(tx: Modifiable, kernel: str = "auto") -> Modifiable:
    """Selects how a leaf's step is compiled: by XLA, or as one kernel.

    The arithmetic is the same. On TPUs a kernel reads and writes each array once, where XLA also
    stores intermediate results: 16.1 bytes per parameter instead of 33 to 117 with 8-bit moments.
    `inspect.report` shows which of the two steps each leaf, and why.

    Args:
      tx: a transformation of this package, or a function that makes one.
      kernel: "auto" uses a kernel on TPUs for leaves that XLA does not step in one pass: moments of
        8 or 4 bits or rounded stochastically, weights with a rest. "xla" never uses one. "pallas"
        uses one for each leaf that a kernel can step; on other platforms it runs in interpret mode,
        which is slow and meant for tests.

    Returns:
      The same transformation, with the same state.

    Raises:
      ValueError: another `kernel`; `tx` is not of this package.

    A program for several devices uses kernels inside `jax.shard_map` over all axes, on meshes with
    explicit axes, and where `sharding.shard_state` knows the shardings of the leaves. Elsewhere XLA
    steps the leaves.
    """
    if kernel not in ("auto", "xla", "pallas"):
        raise ValueError(
            f"kernel must be 'auto', 'xla' or 'pallas', got {kernel!r}: 'auto' is the faster one."
        )
    edit = functools.partial(dataclasses.replace, kernel=kernel)
    return modified(with_kernel, tx, edit, kernel=kernel)


def layers_of(tx: Any) -> Layers:
    """The layers that `with_layers` declared, of a transformation or a function that makes one."""
    if isinstance(tx, ModifiedFactory):
        return dict(tx.settings).get("layers") or layers_of(tx.factory)
    known = jax.tree.leaves(tx, is_leaf=lambda x: hasattr(x, "layers"))
    return next((x.layers for x in known if getattr(x, "layers", None)), Layers())


def with_layers(tx: Function | Transformation, layers: LayersLike | Layers) -> Any:
    r"""Steps each layer of a stacked leaf as a separate tensor.

    Layers under `jax.lax.scan` share one leaf with a leading axis, [layers, inputs, outputs]. An
    optimizer sees one tensor: norms, means and factors run over all layers, and a bias is a matrix
    that decays. `with_layers` steps each layer as if it were a leaf. This applies to the norms of
    `lamb` and `mars_adamw`; `cautious` and `clip_update_rms`; means of `Factored()`; the sizes by
    which `jnp.int8` and similar formats select leaves to quantize; random bits; a callable `mask`,
    which sees the shape of one layer; and `transfer.mup`.

    Args:
      tx: a transformation of this package, including its outermost wrapper, or a function that
        makes one. Transformations of other libraries inside it see whole leaves.
      layers: a regular expression that matches the whole path of each leaf whose first axis is
        layers; or a dict from expressions to the number of such axes, where the first match wins. A
        path joins the dict keys, attributes and indices of a leaf with slashes:
        `blocks/attention/kernel`.

    Returns:
      The same transformation, with the same state. Results equal those of separate leaves ordered
      layer by layer: on CPUs bit for bit, except for MARS with 4-bit moments, where XLA contracts a
      product and a sum in one of the two programs; elsewhere sums may differ in the last place. The
      statistics of `telemetry` agree to rounding.

    Raises:
      ValueError: in this call, `layers` is not made of expressions, or `tx` is of another library;
        in `init`, an expression matches nothing, or a leaf has too few axes.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"blocks": {"kernel": jnp.ones((12, 64, 64)), "bias": jnp.zeros((12, 64))}}
      >>> tx = adam_jax.adamw(1e-3, weight_decay=0.1, mask=adam_jax.decay_mask)
      >>> tx = adam_jax.with_layers(tx, "blocks/.*")
      >>> state = tx.init(params)

    Differs from Optax in: Optax has no equivalent; the nearest is `jax.vmap` of the transformation
    over all leaves.
    """
    known = layers if isinstance(layers, Layers) else Layers.of(layers)
    if is_factory(tx):
        return ModifiedFactory(tx, with_layers, (("layers", known),))
    body = body_of("tx", tx)
    if isinstance(body, Foreign):
        raise ValueError(
            f"tx must be a transformation of adam_jax, got {type(tx).__name__}: write"
            f" with_layers(adam_jax.chain(...), layers) for optax.chain(...)."
        )
    return Transformation.around(body.told_of(known))


def cautious_weight_decay(tx: Modifiable) -> Modifiable:
    """Decays a weight only if the update moves it towards zero too: λ·1[u·θ ≥ 0]·θ.

    Args:
      tx: a transformation of this package with decoupled weight decay, or a function that makes
        one.

    Raises:
      ValueError: `tx` has no weight decay.

    Reference: Chen et al. 2025, Cautious Weight Decay (https://arxiv.org/abs/2510.12402),
    algorithm 1.
    """

    def edit(member: Member) -> Member:
        decay = _decay_of(member, "cautious_weight_decay")
        return member.changed(decay, lambda rule: dataclasses.replace(rule, cautious=True))

    return modified(cautious_weight_decay, tx, edit)


def corrected_weight_decay(tx: Modifiable, peak_learning_rate: jax.typing.ArrayLike) -> Modifiable:
    r"""Keeps the norm of normalized layers constant while the learning rate falls (AdamC).

        λ_t ← λ_t·α_t/α_max

    For weights followed by a normalization, so that the loss does not depend on their norm. A step
    adds about α_t²·‖u‖² to ‖θ‖², since u is nearly orthogonal to θ, and decay subtracts
    2·α_t·λ·‖θ‖². With a constant λ the norm settles near √(α_t/2λ)·‖u‖ and falls with α_t. The
    gradient is inversely proportional to the norm, so it grows near the end of training. With the
    correction the norm stays near √(α_max/2λ)·‖u‖.

    Args:
      tx: a transformation of this package with decoupled weight decay and a learning rate that
        multiplies it, or a function that makes one.
      peak_learning_rate: α_max, the largest learning rate of `tx`, > 0. For
        `transfer.scale_batch(...)` it is the peak of the scaled schedule, for `transfer.mup(...)`
        the peak of the schedule without factors.

    Returns:
      The same transformation, with the same state. A constant learning rate of α_max leaves the
      decay unchanged.

    Raises:
      ValueError: `tx` has no weight decay; the learning rate does not multiply the decay
        (scale_decay=False); the peak is not positive.

    Example:
      The paper applies plain decay to the output layer, which no normalization follows. A function
      passed to `groups` does the same:

      >>> import adam_jax, jax.numpy as jnp, optax
      >>> schedule = optax.cosine_decay_schedule(3e-3, 1000)
      >>> def adamc(learning_rate, peak=3e-3):
      ...     tx = adam_jax.adamw(learning_rate, weight_decay=0.1)
      ...     return adam_jax.corrected_weight_decay(tx, peak) if peak else tx
      >>> tx = adam_jax.groups(adamc, {"head/.*": dict(peak=None)}, learning_rate=schedule)
      >>> params = {"head": {"kernel": jnp.ones(2)}, "block": {"kernel": jnp.ones(2)}}
      >>> state = tx.init(params)

    Differs from timm (`corrected_weight_decay=True`) in: α_max is an argument. In timm it is the
    learning rate at which the optimizer is created.

    Reference: Defazio 2025, Why Gradients Rapidly Increase Near the End of Training
    (https://arxiv.org/abs/2506.02285).
    """
    instead = "write the schedule's largest value"
    peak = check_number("peak_learning_rate", peak_learning_rate, 1e-30, instead=instead)

    def edit(member: Member) -> Member:
        decay = _decay_of(member, "corrected_weight_decay")
        variants = tuple(_corrected(stages, decay, peak) for stages in member.variants)
        return dataclasses.replace(member, variants=variants)

    return modified(corrected_weight_decay, tx, edit, peak_learning_rate=peak)


def _decay_of(member: Member, modifier: str) -> int:
    """The index of the stage with decoupled weight decay."""
    for k in range(main_stage(member) + 1, len(member.stages)):
        if Unit.WEIGHT_DECAY in units_of(member.stages[k].rule):
            return k
    raise ValueError(f"tx must have decoupled weight decay, as {modifier}(adamw(...)).")


def _corrected(stages: tuple[Stage, ...], decay: int, peak: Number) -> tuple[Stage, ...]:
    numbers = [x for stage in stages[decay + 1 :] for x in numbers_of(stage.rule)]
    rates = [number for unit, number in numbers if unit is Unit.LEARNING_RATE]
    if not rates:
        raise ValueError(
            "tx must have a learning rate that multiplies its weight decay: use an alias such as"
            " adamw(1e-3), with scale_decay=True."
        )
    rate = rates[0].inner if isinstance(rates[0], Scaled) else rates[0]  # Without factors of muP.
    rule: Any = stages[decay].rule
    rule = dataclasses.replace(rule, weight_decay=Relative(rule.weight_decay, rate, peak))
    return (*stages[:decay], dataclasses.replace(stages[decay], rule=rule), *stages[decay + 1 :])
