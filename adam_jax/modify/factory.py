"""Factories: functions that make an optimizer from hyperparameters, passed as arguments."""

import dataclasses

import optax

from adam_jax._types import Function


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


def name_of(factory: Function) -> str:
    """The name for messages: `adamw`, also for a `functools.partial` of it."""
    factory = getattr(factory, "func", factory)
    return getattr(factory, "__name__", type(factory).__name__)


def check_factory(factory: Function, caller: str) -> None:
    """Rejects an optimizer passed where the function that makes it is expected.

    Raises:
      ValueError: `factory` is not a function.
    """
    if isinstance(factory, optax.GradientTransformation) or not callable(factory):
        raise ValueError(
            f"factory must be a function that makes an optimizer, got {type(factory).__name__}:"
            f" write {caller}, adamw without its arguments."
        )
