"""Types of the values that pass through. Trees are `Any`: users choose their structure."""

from collections.abc import Callable
from typing import Any, TypeAlias

PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
"""The parameters: a tree of arrays, floating-point or not, and None."""
Updates: TypeAlias = PyTree
"""Gradients, or updates: a tree like the parameters."""
State: TypeAlias = PyTree
"""The state that `init` and the steps of a transformation return."""
Result: TypeAlias = tuple[Updates, State]
"""The updates, or the new parameters, and the new state."""
Leaf: TypeAlias = Any
"""An array, a Python number, None, or any object that users put there instead."""
Stored: TypeAlias = PyTree
"""One accumulator of one leaf, as a format stores it."""
Number: TypeAlias = Any
"""A Python or NumPy number, an array of one number, or a tracer."""
Scalars: TypeAlias = PyTree
"""The numbers of one optimizer step, shared by all leaves."""
Count: TypeAlias = Any
"""int32 scalar: optimizer steps completed; None if there is no count."""
DType: TypeAlias = Any
Function: TypeAlias = Callable[..., Any]
Named: TypeAlias = dict[str, Any]
"""Values by name, such as the arguments of a function."""
AnyTransformation: TypeAlias = Any
"""A transformation of this package, of Optax, or with Optax's interface."""
