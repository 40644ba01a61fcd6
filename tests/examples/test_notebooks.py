"""The notebooks: clean in git, and executed from top to bottom in a kernel of this interpreter."""

import asyncio
import base64
import gc
import io
import os
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.compilation import IN_A_HURRY

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


# Clean in git.


def test_there_are_three():
    assert NAMES == ["1-first-steps", "2-reading-adams-state", "3-tuning"]


@pytest.mark.parametrize("name", NAMES)
def test_only_what_someone_wrote_is_kept(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_the_story_has_headings(name):
    cells = read(name).cells
    assert max(cell.source.count("\n") + 1 for cell in cells) <= 40
    headings = [cell for cell in cells if cell.source.startswith(("# ", "## "))]
    assert len(headings) >= 5 and cells[0] is headings[0]


# Executed.


class ThisInterpreter(KernelSpecManager):
    """Knows one kernel: ipykernel in the interpreter that runs the tests, whatever is installed."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(**get_kernel_dict())


def execute(notebook, folder, steps, tmp_path):
    """Fills in the outputs; raises CellExecutionError where a cell does."""
    environment = os.environ | {
        "NOTEBOOK_STEPS": str(steps),
        **IN_A_HURRY,  # Most of a short run is compilation.
        # Nothing is read from or written to the home of the one who runs the tests.
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    manager = AsyncKernelManager(
        kernel_spec_manager=ThisInterpreter(),
        connection_file=str(tmp_path / "kernel.json"),
        transport_encryption="auto",  # Without it, ipykernel warns.
    )
    client = NotebookClient(
        notebook, km=manager, timeout=120, resources={"metadata": {"path": str(folder)}}
    )
    # A kernel of a manager that is not its own the client leaves running, and its sockets open.
    asyncio.run(client.async_execute(env=environment, cleanup_kc=True))
    gc.collect()  # What is open still is this test's failure, not that of one after it.


def outputs_of(notebook):
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


# By name: the folder that Jupyter was started in, optimizer steps, pictures, the test accuracy to
# be reached, and what must hold in the kernel at the end.
RUNS = {
    "1-first-steps": (
        ROOT,
        200,
        4,
        0.87,
        """
        assert np.mean(losses[-20:]) < 0.3 * losses[0]
        assert accuracies[-1][1] == test_accuracy > accuracies[0][1]
        assert len(losses) == STEPS and apart < 1e-5
        assert confusion.sum() == len(wrong) == round((1 - test_accuracy) * len(guesses))
        """,
    ),
    "2-reading-adams-state": (
        NOTEBOOKS,
        50,
        5,
        0.8,
        """
        assert list(snapshots) == [1, 5, 50]
        assert furthest(snapshots[1][2], signs) < 1e-3
        np.testing.assert_allclose(u_hat_sizes * too_large, u_sizes, rtol=1e-2)  # But for epsilon.
        moved = by_name(jax.tree.map(jnp.subtract, tuned, params))
        still = [name for name, change in moved.items() if not change.any()]
        assert still == ["hidden/bias", "hidden/kernel"]
        blank = ~digits.train_images.any(axis=0).ravel()
        assert blank.any() and untouched[blank].all() and not untouched.all()
        assert per_parameter["lion"] < per_parameter["adamw, bfloat16 mu"] < per_parameter["adam"]
        """,
    ),
    "3-tuning": (
        NOTEBOOKS,
        50,
        4,
        0.8,
        """
        assert tried > 1 and compiled == 1
        assert lowered[0, -1] < fixed[0, -1]
        assert all(loss < 1.5 for loss in ends.values())
        assert 1e-4 < rates_swept[best_rate] < 1 and np.isfinite(losses_swept).all()
        assert losses[-1].max() < control_losses[-1].max()
        assert np.ptp(rates[-1]) < np.ptp(control_rates[-1])
        """,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_from_top_to_bottom(name, tmp_path):
    folder, steps, pictures, least_accuracy, claims = RUNS[name]
    notebook = read(name)
    source = "\n".join(line.strip() for line in claims.strip().splitlines())
    notebook.cells.append(nbformat.v4.new_code_cell(source, id="claims"))
    execute(notebook, folder, steps, tmp_path)
    outputs = outputs_of(notebook)

    assert not [out.text for out in outputs if out.get("name") == "stderr"]
    shown = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(shown) == pictures
    for picture in shown:
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
        assert pixels.shape[0] > 200 and pixels.shape[1] > 400
        assert 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.9

    *_, last = [out.text for out in outputs if out.get("name") == "stdout"]
    assert least_accuracy < float(last.split("test_accuracy")[1]) < 1
