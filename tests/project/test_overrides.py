"""A method is either abstract or final: no class of the package overrides a concrete method.

A method of a base class therefore does the same in all subclasses.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import textwrap

import adam_jax


def classes():
    """Every class of the package, listed in the module that defines it."""
    for module in pkgutil.walk_packages(adam_jax.__path__, "adam_jax."):
        for x in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(x) and x.__module__ == module.name:
                yield x


def function_of(x):
    """The function of a method, a property, a class method; None for another attribute."""
    if isinstance(x, property):
        return x.fget
    if isinstance(x, functools.cached_property):
        return x.func
    x = getattr(x, "__func__", x)
    return x if inspect.isfunction(x) else None


def is_concrete(x):
    """Not abstract, and with a body that does more than raise an error."""
    if (f := function_of(x)) is None or getattr(f, "__isabstractmethod__", False):
        return False
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(f))).body
    body = definition.body[ast.get_docstring(definition) is not None :]
    return not all(isinstance(statement, ast.Raise) for statement in body)


def overridden(cls):
    """The methods with which this class overrides those of other classes of the package."""
    for name, own in vars(cls).items():
        for base in cls.__mro__[1:]:
            theirs = vars(base).get(name)
            ours = base.__module__.startswith("adam_jax.")
            if ours and not name.startswith("__") and theirs is not own and is_concrete(theirs):
                yield f"{cls.__module__}.{cls.__qualname__}.{name} of {base.__qualname__}"


def test_no_class_overrides_a_concrete_method():
    found = sorted(o for cls in set(classes()) for o in overridden(cls))
    assert found == []
