"""Checks that a member of this package keeps the same slots as its twin in another library.

The state does not tell: AdaMax and Adam have the same fields. The rules inside a transformation do,
but they are not visible through the closures of Optax (`optax.chain`, `optax.masked`).
"""

from collections.abc import Iterable

import numpy as np

from adam_jax._types import AnyTransformation, Leaf, Params
from adam_jax.convert.entries import as_numpy, by_path
from adam_jax.convert.names import listed
from adam_jax.modify.hyperparams import expanded
from adam_jax.rules.adam import EmaOfSquares
from adam_jax.rules.base import Rule, rules_in
from adam_jax.rules.variants import DecayingMax, RunningMax


def twin_rules(
    library: str,
    params: Params,
    tx: AnyTransformation,
    kinds: Iterable[type],
    allowed: tuple[type, ...],
) -> list[Rule]:
    """The rules with slots in a transformation; empty if they are not visible.

    Raises:
      ValueError: not all `kinds` of states are `allowed`, those with an equivalent in the library;
        a second moment means something else there (the message says what to write instead); a
        parameter is complex, for which other libraries keep other squares.
    """
    wrong = {kind.__name__ for kind in kinds} - {kind.__name__ for kind in allowed}
    if wrong:
        raise ValueError(
            f"tx must have a twin in {library}, whose states are like"
            f" {', '.join(kind.__name__ for kind in allowed)}, got {', '.join(sorted(wrong))}."
        )
    rules = [rule for rule in rules_in(expanded(tx)) if rule.slots]
    for rule in rules:
        second = getattr(rule, "second", None)
        if isinstance(second, RunningMax) and second.inner.bias_correction:
            raise ValueError(
                f"tx must be amsgrad(..., max_before_correction=True), got one whose maximum is"
                f" that of the corrected nu, as in Optax: {library} keeps the uncorrected one."
            )
        like_adam = {"mu", "nu"} <= {slot.name for slot in rule.slots}
        if like_adam and not isinstance(second, EmaOfSquares | RunningMax | DecayingMax):
            name = type(rule if second is None else second).__name__
            raise ValueError(
                f"tx must be adam, amsgrad, nadam, radam, adamax, lamb or similar, got the rule"
                f" {name}, which {library} does not have."
            )
    if complex_ones := [path for path, p in by_path(params).items() if np.iscomplexobj(p)]:
        raise ValueError(
            f"params must be real to be converted, got complex {listed(complex_ones)}: other"
            f" libraries keep separate squares of real and imaginary parts, this one their sum."
        )
    return rules


def is_maximum(rules: list[Rule], unseen: bool) -> bool:
    """Whether nu is the largest gradient, as in AdaMax; `unseen` if there are no rules."""
    if not rules:
        return unseen
    return any(isinstance(getattr(rule, "second", None), DecayingMax) for rule in rules)


def momentum_product(rules: list[Rule], steps: int) -> float | None:
    """The product of NAdam's momenta after `steps`, which other libraries keep; None for others.

    Dozat 2016, section 3.1: the momentum of step t is b·(1 - 0.96^(tψ) / 2).
    """
    firsts = [getattr(rule, "first", None) for rule in rules]
    scheduled = [x for x in firsts if x is not None and x.momentum_decay is not None]
    if not scheduled:
        return None
    # After a million steps it is 0 or constant.
    powers = np.arange(1, min(steps, 10**6) + 1, dtype=np.float64)
    powers *= float(scheduled[0].momentum_decay)
    b = 1.0 - float(scheduled[0].ema.rate.complement)
    return float(np.prod(b * (1 - 0.5 * 0.96**powers)))


def check_momentum_product(argument: str, found: Leaf, rules: list[Rule], steps: int) -> None:
    """Checks that a run of NAdam had the same momenta as here.

    Raises:
      ValueError: it had others, or `tx` is not NAdam with a schedule of momenta.
    """
    if not rules:
        return
    expected = momentum_product(rules, steps)
    if expected is None:
        raise ValueError(
            f"tx must be nadam(..., momentum_decay=...) to continue {argument}, which has the"
            f" product of NAdam's momenta: PyTorch's momentum_decay is 0.004, Keras's 1.0."
        )
    found = float(as_numpy(found))
    # A float32 product, rounded at each step and 0 after a thousand.
    if not np.isclose(found, expected, rtol=1e-3, atol=1e-30):
        raise ValueError(
            f"tx must have b1 and momentum_decay of the run in {argument}: after {steps} steps the"
            f" product of its momenta is {found:.6g}, and would be {expected:.6g} here."
        )
