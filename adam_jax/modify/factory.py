"""Functions that make an optimizer from hyperparameters, as arguments of other functions."""

import dataclasses

import optax

from adam_jax._types import Function


@dataclasses.dataclass(frozen=True)
class Factory:
    """A function made of another; it compares and pickles by value, which a closure does not.

    Attributes:
      factory: the function inside, whose name, signature and documentation it has.
    """

    factory: Function

    def __post_init__(self) -> None:
        made = self.factory
        vars(self).update(__name__=name_of(made), __doc__=made.__doc__, __wrapped__=made)


def name_of(factory: Function) -> str:
    """What a reader calls it: `adamw`, also where its arguments are partly given."""
    factory = getattr(factory, "func", factory)
    return getattr(factory, "__name__", type(factory).__name__)


def check_factory(factory: Function, caller: str) -> None:
    """Says what to write where somebody passes the optimizer, and not the function that makes it.

    Raises:
      ValueError: `factory` is no function.
    """
    if isinstance(factory, optax.GradientTransformation) or not callable(factory):
        raise ValueError(
            f"factory must be a function that makes an optimizer, got {type(factory).__name__}:"
            f" write {caller}, adamw without its arguments."
        )
