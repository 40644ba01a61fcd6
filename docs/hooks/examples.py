"""Griffe extension: renames our heading `Example:` to the one that griffe knows, `Examples:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the heading in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Renames the heading in the docstring of one object."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)
