"""The types of what passes through. Trees have the shape that users give them: no narrower type."""

from collections.abc import Callable
from typing import Any, TypeAlias

PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
"""The parameters: a tree of arrays, floating-point or not, and None."""
Updates: TypeAlias = PyTree
"""Gradients, or updates: a tree like the parameters."""
State: TypeAlias = PyTree
"""What `init` and the steps of a transformation return."""
Result: TypeAlias = tuple[Updates, State]
"""The updates, or the new parameters, and the new state."""
Leaf: TypeAlias = Any
"""An array, a Python number, None, or something that users put in their place."""
Stored: TypeAlias = PyTree
"""One accumulator of one leaf, as a format stores it."""
Number: TypeAlias = Any
"""A number of Python or NumPy, an array of one, or a tracer."""
Scalars: TypeAlias = PyTree
"""The numbers of one optimizer step, the same for all leaves."""
Count: TypeAlias = Any
"""int32 scalar: optimizer steps completed; None where nobody counts."""
DType: TypeAlias = Any
Function: TypeAlias = Callable[..., Any]
Named: TypeAlias = dict[str, Any]
"""Values by name, such as the arguments of a function."""
AnyTransformation: TypeAlias = Any
"""A transformation of this package, of Optax, or of who writes like Optax."""
