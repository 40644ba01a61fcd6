"""Executes the notebooks and stores their outputs, which the repository and the site show.

python -m examples.usage.notebooks [NAME ...]    e.g. 3-tuning; default: all

Needs nbclient and ipykernel from the dependency group `test`. Run it after each change of a
notebook: a test compares the digest of the executed code with that of the code in the file.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
DIGEST = "executed_sources"
"""The metadata key for the SHA-256 of the code that produced the outputs."""
PROGRESS = re.compile(r"<progress\b")


class ThisInterpreter(KernelSpecManager):
    """Knows one kernel: ipykernel in this interpreter, regardless of other installed kernels."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The specification of this interpreter's kernel."""
        del kernel_name
        return KernelSpec(**get_kernel_dict())


def read(name: str) -> Any:
    """Reads a notebook of this folder."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def digest(notebook: Any) -> str:
    """The SHA-256 of all code, cell by cell."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def execute(notebook: Any, folder: Path, scratch: Path, environment: dict[str, str]) -> None:
    """Fills in the outputs.

    Args:
      notebook: is changed in place.
      folder: the kernel's working directory.
      scratch: a folder for the files of the connection.
      environment: variables of the kernel, in addition to those of this process.

    Raises:
      CellExecutionError: a cell raises.
    """
    own = {
        # The kernel neither reads from nor writes to the user's home.
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    manager = AsyncKernelManager(
        kernel_spec_manager=ThisInterpreter(),
        connection_file=str(scratch / "kernel.json"),
        transport_encryption="auto",  # Without it, ipykernel warns.
    )
    client = NotebookClient(
        notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    # With an external kernel manager, the client leaves kernel and sockets open.
    asyncio.run(client.async_execute(env=os.environ | own | environment, cleanup_kc=True))


def clean(notebook: Any) -> None:
    """Removes parts that readers do not need: times of cells, progress bars, colours of edges."""
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_progress(out)]
            for out in cell.outputs:
                out.pop("transient", None)
                if "metadata" in out:
                    out.metadata = nbformat.NotebookNode()
                if "image/png" in out.get("data", {}):
                    out.data["image/png"] = _smaller(out.data["image/png"])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {DIGEST: digest(notebook), "kernelspec": kernel, "language_info": {"name": "python"}}
    )


def _smaller(png: str) -> str:
    """Reduces the image to 256 colours, a third of the bytes: anti-aliasing uses thousands."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        file = io.BytesIO()
        picture.convert("RGB").quantize(256, kmeans=3).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _is_progress(out: Any) -> bool:
    return bool(PROGRESS.search(out.get("data", {}).get("text/html", "")))


def main(argv: list[str] | None = None) -> None:
    """Executes and writes the notebooks."""
    parser = argparse.ArgumentParser(prog="python -m examples.usage.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(NAMES)}")
    names = parser.parse_args(argv).names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"there is no notebook {', '.join(unknown)}: take some of {', '.join(NAMES)}")
    for name in names:
        notebook = read(name)
        with tempfile.TemporaryDirectory() as scratch:
            execute(notebook, ROOT, Path(scratch), {"PYTHONPATH": str(ROOT)})
        clean(notebook)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
