"""Griffe extension: griffe reads sources without running them; what `alias` makes only runs show.

`adamw = alias("adamw", scale_by_adam, weight_decay=1e-4)` is an attribute to it. Here it becomes
the function that users see, with the signature and the docstring of the running package.
"""

import importlib
import inspect
import re
from typing import Any

import griffe


class Aliases(griffe.Extension):
    """Turns attributes that are functions when the package runs into functions."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Looks through a module when griffe has read it."""
        for name, member in list(mod.members.items()):
            if isinstance(member, griffe.Attribute) and str(member.value).startswith("alias("):
                run = getattr(importlib.import_module(mod.path), name)
                mod.set_member(name, _function(mod, name, run))

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Makes of our `Example:` the heading that griffe knows."""
        if obj.docstring:
            obj.docstring.value = _with_examples(obj.docstring.value)


def _with_examples(docstring: str) -> str:
    return re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)


def _function(mod: griffe.Module, name: str, run: Any) -> griffe.Function:
    parameters = [
        griffe.Parameter(
            p.name,
            kind=griffe.ParameterKind[p.kind.name.lower()],
            default=None if p.default is p.empty else _shown(p.default),
        )
        for p in inspect.signature(run).parameters.values()
    ]
    function = griffe.Function(
        name,
        parameters=griffe.Parameters(*parameters),
        returns="Transformation",
        docstring=griffe.Docstring(_with_examples(inspect.getdoc(run) or "")),
    )
    assert function.docstring
    function.docstring.parent = function
    return function


def _shown(default: Any) -> str:
    return getattr(default, "__name__", repr(default))
