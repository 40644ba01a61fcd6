"""Griffe extension: makes of our `Example:` the heading that griffe knows, `Examples:`."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the heading in every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Renames it in one."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)
