"""Whether a member of this package keeps what its namesake in another library keeps.

A state does not say it: AdaMax and Adam have the same fields. The rules inside a transformation
do, where they can be seen: not through the closures of Optax (`optax.chain`, `optax.masked`).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from adam_jax._types import AnyTransformation, State
from adam_jax.modify.hyperparams import expanded
from adam_jax.rules.base import rules_in


def member_rules(tx: AnyTransformation) -> list[State]:
    """The rules in a transformation that remember something; none where they cannot be seen."""
    return [rule for rule in rules_in(expanded(tx)) if rule.slots]


def check_kinds(library: str, kinds: Iterable[type], allowed: tuple[type, ...]) -> None:
    """Checks that the states are of types that another library has something for.

    Raises:
      ValueError: they are not.
    """
    wrong = {kind.__name__ for kind in kinds} - {kind.__name__ for kind in allowed}
    if wrong:
        raise ValueError(
            f"tx must have a twin in {library}, whose states are like"
            f" {', '.join(kind.__name__ for kind in allowed)}, got {', '.join(sorted(wrong))}."
        )


def check_twin(library: str, rules: Iterable[Any]) -> None:
    """Checks that each second moment is one that the other library has, and means the same there.

    Raises:
      ValueError: it is not; the message says what to write instead.
    """
    for rule in rules:
        second = getattr(rule, "second", None)
        statistic = getattr(second, "statistic", None)
        if statistic == "largest corrected average of squares":
            raise ValueError(
                f"tx must be amsgrad(..., max_before_correction=True), got one whose maximum is"
                f" that of the corrected nu, as in Optax: {library} keeps the uncorrected one."
            )
        if statistic is None:
            name = type(rule if second is None else second).__name__
            raise ValueError(
                f"tx must be adam, amsgrad, nadam, radam, adamax, lamb or the like, got the rule"
                f" {name}, which {library} does not have."
            )


def is_maximum(rules: Iterable[Any]) -> bool:
    """Whether nu is the largest gradient, as AdaMax has it."""
    return any(
        getattr(getattr(rule, "second", None), "statistic", None) == "largest gradient"
        for rule in rules
    )


def momentum_product(rules: Iterable[Any], steps: int) -> float | None:
    """Π of NAdam's momenta after so many steps, which other libraries keep; None for others.

    Dozat 2016, section 3.1: the momentum of step t is b·(1 - 0.96^(tψ) / 2).
    """
    firsts = [getattr(rule, "first", None) for rule in rules]
    scheduled = [x for x in firsts if x is not None and x.momentum_decay is not None]
    if not scheduled:
        return None
    # After a million steps it is 0, or moves no more.
    powers = np.arange(1, min(steps, 10**6) + 1, dtype=np.float64)
    powers *= float(scheduled[0].momentum_decay)
    b = 1.0 - float(scheduled[0].ema.rate.complement)
    return float(np.prod(b * (1 - 0.5 * 0.96**powers)))


def check_momentum_product(argument: str, found: float, rules: Iterable[Any], steps: int) -> None:
    """Checks that a run of NAdam had the momenta that it will have here.

    Raises:
      ValueError: it had others, or `tx` is not NAdam with a schedule of momenta.
    """
    rules = list(rules)
    expected = momentum_product(rules, steps)
    if not rules:
        return
    if expected is None:
        raise ValueError(
            f"tx must be nadam(..., momentum_decay=...) to go on with {argument}, which has the"
            f" product of NAdam's momenta: PyTorch's momentum_decay is 0.004, Keras's 1.0."
        )
    # In float32, rounded at each step, and 0 after a thousand.
    if not np.isclose(found, expected, rtol=1e-3, atol=1e-30):
        raise ValueError(
            f"tx must have b1 and momentum_decay of the run in {argument}: after {steps} steps the"
            f" product of its momenta is {found:.6g}, and would be {expected:.6g} here."
        )
