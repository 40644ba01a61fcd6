"""MkDocs hook: adds the notebooks as pages, with their stored outputs."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "usage" / "notebooks"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # Terminal colours
LINK = re.compile(r"\]\(([\w-]+)\.ipynb\)")  # Links between notebooks


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each notebook, and its pictures."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = page(json.loads(path.read_text()), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(LINK.sub(r"](\1.md)", source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![output of the cell above]({file})")
            elif text := output.get("text") or data.get("text/plain"):
                plain = ESCAPES.sub("", "".join(text)).rstrip()
                parts.append(f"```text\n{plain}\n```")
    return "\n\n".join(parts) + "\n", pictures
