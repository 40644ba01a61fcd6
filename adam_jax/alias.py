"""From a scale_by_* to the whole optimizer: weight decay and the learning rate, on the same pass.

Every alias of every member is this one composition, so the members write only what is their own:
`adamax = alias("adamax", scale_by_adamax)`. Signature and docstring are put together here as well.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax

from adam_jax.engine.compose import learning_rate_stage, weight_decay_stage
from adam_jax.engine.stage import Stage
from adam_jax.engine.transformation import Transformation
from adam_jax.rules.scaling import Identity, Schedule
from adam_jax.validation import bind_arguments

ArrayLike = jax.typing.ArrayLike

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

_LEARNING_RATE = """\
  learning_rate: α, per optimizer step: a number, below 0 for ascent, or a function of the number
    of optimizer steps completed so far (0 at the first).
"""
_L2 = """\
  l2: λ₂, a number or a function of the optimizer steps completed: λ₂·θ is added to the
    gradient before the moments (coupled decay, PyTorch's `Adam(weight_decay=)`). None leaves it,
    and its entry in the state, out.
"""
_WEIGHT_DECAY = """\
  weight_decay: λ, decoupled: a number, or a function of the optimizer steps completed so far.
  mask: the leaves that decay: a tree of booleans like the parameters (or a prefix of that), or a
    function that makes one from the parameters. None decays all; see `decay_mask`. A leaf that is
    no boolean is an error.
  scale_decay: False takes λ·θ as it is, not multiplied by the learning rate (fully decoupled:
    θ ← θ - α·u - λ·θ); its entry in the state is then the last one.
"""


class Alias(Protocol):
    """A function from hyperparameters to an optimizer, the learning rate first."""

    def __call__(
        self, learning_rate: optax.ScalarOrSchedule, *args: Any, **kwargs: Any
    ) -> Transformation:
        """See the docstring of the alias, and its signature."""
        ...


def alias(
    name: str,
    scale_by: Callable[..., Transformation],
    *,
    weight_decay: float | None = None,
    keyword_only: tuple[str, ...] = (),
    before_learning_rate: tuple[Stage, ...] = (),
    update: str | None = None,
    **defaults: Any,
) -> Alias:
    """Makes the alias `name(learning_rate, ...)` of a member.

    Args:
      name: its name, in the module that calls this.
      scale_by: the member. Its arguments follow the learning rate.
      weight_decay: the default of decoupled weight decay; None for an alias without it.
      keyword_only: positional arguments of `scale_by` that Optax's alias does not have.
      before_learning_rate: stages between weight decay and the learning rate.
      update: what the docstring says of θ, where that is not what most aliases do.
      **defaults: of arguments of `scale_by`, where Optax's alias has another one.

    Returns:
      A function whose `inspect.signature` and docstring are the alias's own.
    """
    decays = weight_decay is not None
    signature = _signature(scale_by, weight_decay, keyword_only, defaults)

    def build(*args: Any, **kwargs: Any) -> Transformation:
        bound = bind_arguments(name, signature, args, kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        rate = learning_rate_stage(given.pop("learning_rate"))
        if not decays:
            l2 = given.pop("l2")
            before = [] if l2 is None else [weight_decay_stage("l2", l2)]
            behind = [*before_learning_rate, rate]
        else:
            decay, mask = given.pop("weight_decay"), given.pop("mask")
            scaled = given.pop("scale_decay")
            # Without a learning rate nothing is turned downhill, and the decay not either.
            downhill = not scaled and not isinstance(rate.rule, Identity)
            stage = weight_decay_stage("weight_decay", decay, mask, downhill)
            before, behind = [], [stage, *before_learning_rate, rate]
            if not scaled:
                behind = [*before_learning_rate, rate, stage]
        return Transformation.of(*before, *scale_by(**given).body.stages, *behind)

    # Pickled, and shown by help(), as what it is to its users: a function of that module.
    build.__name__ = build.__qualname__ = name
    build.__module__ = scale_by.__module__
    build.__doc__ = _docstring(scale_by, decays, update)
    vars(build)["__signature__"] = signature
    return build


def _signature(
    scale_by: Callable[..., Transformation],
    weight_decay: float | None,
    keyword_only: tuple[str, ...],
    defaults: dict[str, Any],
) -> inspect.Signature:
    own = inspect.signature(scale_by).parameters
    assert set(defaults) | set(keyword_only) <= set(own), (defaults, keyword_only)

    def parameter(name: str, annotation: Any, kind: Any, default: Any = inspect.Parameter.empty):
        return inspect.Parameter(name, kind, annotation=annotation, default=default)

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    # Optax's own tests look for its type.
    first = [parameter("learning_rate", optax.ScalarOrSchedule, either)]
    last = []
    for name, p in own.items():
        kind = KEYWORD_ONLY if name in keyword_only else p.kind
        changed = p.replace(kind=kind, default=defaults.get(name, p.default))
        (last if kind == KEYWORD_ONLY else first).append(changed)
    if weight_decay is None:
        last.append(parameter("l2", ArrayLike | Schedule | None, KEYWORD_ONLY, None))
    else:
        first.append(parameter("weight_decay", ArrayLike | Schedule, either, weight_decay))
        first.append(parameter("mask", Any, either, None))
        last.append(parameter("scale_decay", bool, KEYWORD_ONLY, True))
    return inspect.Signature([*first, *last], return_annotation=Transformation)


def _docstring(scale_by: Callable[..., Transformation], decays: bool, update: str | None) -> str:
    doc = inspect.cleandoc(scale_by.__doc__ or "")
    head, args = doc.split("\nArgs:\n")
    title, _, rest = head.partition("\n")
    update = update or ("θ ← θ - α_t·(u + λ_t·θ)" if decays else "θ ← θ - α_t·u")
    body, _, tail = args.partition("\n\n")
    returns = (
        f"\nReturns:\n  A transformation whose state is the tuple of its stages' states: that of"
        f" `{scale_by.__name__.lstrip('_')}`,\n  as `optax.chain` would keep it."
        f"{' `update` needs `params`.' if decays else ''}\n"
    )
    own = _WEIGHT_DECAY if decays else _L2
    parts = [
        f"{title}\n{rest.rstrip()}\n\n    {update}\n\nArgs:\n",
        _LEARNING_RATE,
        body + "\n",
        own,
    ]
    return "".join(parts) + returns + ("\n" + _after_returns(tail) if tail else "")


def _after_returns(tail: str) -> str:
    """What follows `Returns:` in the docstring of the member, but for its own examples."""
    paragraphs = tail.split("\n\n")
    keep, skip = [], False
    for paragraph in paragraphs:
        if not paragraph.startswith(" "):
            skip = paragraph.startswith(("Returns:", "Example:"))
        if not skip:
            keep.append(paragraph)
    return "\n\n".join(keep)
