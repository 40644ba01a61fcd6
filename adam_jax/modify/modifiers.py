"""Modifiers: published improvements of Adam that apply to any member.

Each takes a transformation of this package and returns one (`cautious(adamw(1e-3))`), or takes the
function that makes it and returns such a function (`cautious(adamw)`), which `groups` and
`with_hyperparams` accept. Modifiers can be stacked. The state stays the member's own, except for
`grokfast`, which adds an average.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import optax

from adam_jax._types import AnyTransformation, Function, Leaf, PyTree
from adam_jax.engine.call import NoPipeline
from adam_jax.engine.pipeline import Pipeline
from adam_jax.engine.stage import Stage
from adam_jax.engine.states import register
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType, check_slot_dtype
from adam_jax.modify.factory import Factory
from adam_jax.rules.arithmetic import DecayRate
from adam_jax.rules.base import Rule
from adam_jax.rules.modifiers import (
    AmplifySlowGradients,
    Cautious,
    ClipUpdateRms,
    Grams,
)
from adam_jax.rules.variants import Atan2
from adam_jax.validation import as_number, check_number

Modifiable = TypeVar("Modifiable", bound=Function | Transformation)


def cautious(tx: Modifiable) -> Modifiable:
    """Drops the elements of the update whose sign disagrees with the newest gradient.

        φ = 1[u·g > 0]       u ← φ·u / mean(φ)

    mean(φ) is taken per leaf, and is at least 1e-3.

    Args:
      tx: a transformation of this package, or a function that makes one.

    Reference: Liang et al. 2024, Cautious Optimizers (https://arxiv.org/abs/2411.16085),
    algorithm 1, with the mean of its authors' code.
    """
    return modified(cautious, tx, _around(Cautious))


def grams(tx: Modifiable) -> Modifiable:
    """Combines the magnitude of the member's update with the newest gradient's sign: |u|·sign(g).

    The average of the gradient determines only the magnitude. Where g is 0, the update is 0. For
    complex numbers sign(g) is g / |g|. Around `lion` the average has no effect, and the update is
    sign(g). `tx` is as in `cautious`.

    Reference: Cao et al. 2024, Grams: Gradient Descent with Adaptive Momentum Scaling
    (https://arxiv.org/abs/2412.17107). Differs from the authors' code in: ε is the member's own;
    theirs is `eps_hat` of `adamw`.
    """
    return modified(grams, tx, _around(Grams))


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
    return modified(clip_update_rms, tx, _around(change), threshold=threshold)


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
        return rule.with_direction(lambda squared: Atan2(a, b, squared))

    return modified(atan2, tx, _around(change), a=a, b=b)


def nesterov(tx: Modifiable) -> Modifiable:
    """Looks ahead one step in the average of the gradient: b1·mu / (1-b1ᵗ⁺¹) + (1-b1)·g / (1-b1ᵗ).

    `tx` is as in `cautious`.

    Raises:
      ValueError: the average looks ahead already, or is not an average of the gradient alone.

    Reference: Dozat 2016, Incorporating Nesterov Momentum into Adam, algorithm 2.
    """

    return modified(nesterov, tx, _around(lambda rule: rule.looking_ahead()))


class GrokfastState(NamedTuple):
    """State of `grokfast`: optimizer steps completed and the slow gradient."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    slow: PyTree


register(GrokfastState, slots={"slow": False}, counts=["count"])


def grokfast(
    tx: Modifiable,
    decay: jax.typing.ArrayLike = 0.98,
    factor: jax.typing.ArrayLike = 2.0,
    slow_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Modifiable:
    """Amplifies the slow part of the gradient before the member sees it.

        slow ← decay·slow + (1-decay)·g       g ← g + factor·slow

    The first gradient initializes slow. Its state is the first in the tuple of the stages' states.

    Args:
      tx: a transformation of this package, or a function that makes one.
      decay: α of the paper, per optimizer step, 0 ≤ decay < 1.
      factor: λ of the paper, ≥ 0.
      slow_dtype: how slow is stored; see `mu_dtype` of `adamw`.

    Reference: Lee et al. 2024, Grokfast (https://arxiv.org/abs/2405.20233), algorithm 2
    (Grokfast-EMA), started as in its authors' code.
    """
    factor = check_number("factor", factor, instead="the usual value is 2.0")
    decay = check_number("decay", decay, 0.0, 1.0, instead="the usual value is 0.98")
    rule = AmplifySlowGradients(DecayRate.of("decay", decay), factor)
    stage = Stage(rule, GrokfastState, (check_slot_dtype("slow_dtype", slow_dtype),))
    settings = {"decay": decay, "factor": factor, "slow_dtype": slow_dtype}
    return modified(
        grokfast,
        tx,
        lambda x: dataclasses.replace(x, stages=(stage, *x.stages), chained=True),
        **settings,
    )


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

    A program for several devices uses kernels inside `jax.shard_map` over all axes, and where
    `sharding.shard_state` knows the shardings of the leaves. Elsewhere XLA steps the leaves.
    """
    if kernel not in ("auto", "xla", "pallas"):
        raise ValueError(
            f"kernel must be 'auto', 'xla' or 'pallas', got {kernel!r}: 'auto' is the faster one."
        )
    edit = functools.partial(dataclasses.replace, kernel=kernel)
    return modified(with_kernel, tx, edit, kernel=kernel)


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
    edit: Callable[[Pipeline], Pipeline],
    called: str | None = None,
    **settings: Leaf,
) -> Any:
    """Edits the pipeline of a transformation, or of what a function makes.

    Args:
      modifier: the function that was called: `modifier(tx, **settings)`.
      tx: its first argument.
      edit: returns the edited pipeline.
      called: the modifier's public name; None for the function's own name.
      **settings: its other arguments.
    """
    if callable(tx) and not isinstance(tx, optax.GradientTransformation):
        return ModifiedFactory(tx, modifier, tuple((k, as_number(x)) for k, x in settings.items()))
    body = body_of("tx", tx)
    try:
        return Transformation.around(body.edited(edit))
    except NoPipeline:
        name, got = called or modifier.__name__, body if isinstance(tx, Transformation) else tx
        raise ValueError(
            f"tx must be a member of adam_jax, got {type(got).__name__}: write {name}(adamw(...)),"
            f" groups({name}(adamw), ...), with_hyperparams({name}(adamw)), with chain outermost."
        ) from None


def member_of(pipeline: Pipeline) -> int:
    """The index of the member's stage."""
    if pipeline.member is None:
        rules = ", ".join(type(stage.rule).__name__ for stage in pipeline.stages)
        raise ValueError(f"tx must be a member with accumulators, as adamw(...) is, got {rules}.")
    return pipeline.member


def changed(pipeline: Pipeline, index: int, change: Callable[[Any], Rule]) -> Pipeline:
    """The pipeline with the rule of one stage replaced; its slots stay the same."""
    stages = list(pipeline.stages)
    stages[index] = stages[index].with_rule(change(stages[index].rule))
    return dataclasses.replace(pipeline, stages=tuple(stages))


def _around(change: Callable[[Any], Rule]) -> Callable[[Pipeline], Pipeline]:
    """Changes the rule of the member."""
    return lambda pipeline: changed(pipeline, member_of(pipeline), change)
