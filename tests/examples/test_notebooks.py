"""The notebooks: their stored outputs, and a run from top to bottom."""

import base64
import gc
import io
import re
import sys

import nbformat
import pytest

from examples.usage.notebooks.__main__ import DIGEST, FOLDER, NAMES, ROOT, digest, execute, read
from tests.catalogue.compilation import IN_A_HURRY
from tests.examples.processes import shows_something

pytestmark = pytest.mark.slow

# The stored files.


@pytest.mark.parametrize("name", NAMES)
def test_their_form_is_the_same_on_every_machine(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {DIGEST, "kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_the_code_beside_them(name):
    """After a change of code, run python -m examples.usage.notebooks."""
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata[DIGEST] == digest(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        if re.search(r"^print\(", cell.source, re.MULTILINE):
            assert any(out.output_type == "stream" for out in cell.outputs), cell.id
        if re.search(r"^figure, .*subplots", cell.source, re.MULTILINE):
            assert any("image/png" in out.get("data", {}) for out in cell.outputs), cell.id
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    assert len(pictures_of(notebook)) == RUNS[name][1]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_small_and_say_nothing_of_the_machine(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000
    for out in outputs_of(read(name)):
        said = str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", ""))
        of_the_machine = r"(^|[^\w.])/(home|root|work|tmp|usr|Users)/|0x[0-9a-f]{8}"
        assert not re.search(of_the_machine, said), said
        assert out.get("name") != "stderr"


@pytest.mark.parametrize("name", NAMES)
def test_the_first_code_installs_what_is_absent_and_loads_the_digits(name):
    cells = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    assert 'find_spec("adam_jax") is None' in cells[0]
    assert "%pip install --quiet $ADAM_JAX flax matplotlib scikit-learn" in cells[0]
    assert "digits = load_digits()" in cells[0]
    modules = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(cells), re.MULTILINE))
    installed = {"adam_jax", "flax", "jax", "matplotlib", "numpy", "optax", "sklearn"}
    assert modules - set(sys.stdlib_module_names) - {"IPython"} == installed


def test_the_code_s_digest_changes_with_the_code():
    notebook = read(NAMES[0])
    before = digest(notebook)
    notebook.cells[1].source += "\n"
    assert digest(notebook) != before


# Execution.


def outputs_of(notebook):
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def pictures_of(notebook):
    return [x.data["image/png"] for x in outputs_of(notebook) if "image/png" in x.get("data", {})]


# By name: optimizer steps, pictures, the required test accuracy, and expressions that must hold in
# the kernel at the end.
RUNS = {
    "1-first-steps": (
        200,
        4,
        0.85,
        """
        assert np.mean(losses[-20:]) < 0.3 * losses[0]
        assert accuracies[-1][1] == test_accuracy > accuracies[0][1]
        assert len(losses) == STEPS and apart < 1e-5
        assert confusion.sum() == len(wrong) == round((1 - test_accuracy) * len(guesses))
        """,
    ),
    "2-reading-adams-state": (
        50,
        5,
        0.75,
        """
        assert list(snapshots) == [1, 5, 50]
        assert furthest(snapshots[1][2], signs) < 1e-3
        np.testing.assert_allclose(u_hat_sizes * too_large, u_sizes, rtol=1e-2)  # But for epsilon.
        moved = by_name(jax.tree.map(jnp.subtract, tuned, params))
        still = [name for name, change in moved.items() if not change.any()]
        assert still == ["hidden/bias", "hidden/kernel"]
        blank = ~np.asarray(images).any(axis=0).ravel()
        assert blank.any() and untouched[blank].all() and not untouched.all()
        assert per_parameter["lion"] < per_parameter["adamw, bfloat16 mu"] < per_parameter["adam"]
        """,
    ),
    "3-tuning": (
        50,
        4,
        0.75,
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
    steps, pictures, least_accuracy, claims = RUNS[name]
    notebook = read(name)
    source = "\n".join(line.strip() for line in claims.strip().splitlines())
    notebook.cells.append(nbformat.v4.new_code_cell(source, id="claims"))
    # A short run is mostly compilation.
    environment = {"NOTEBOOK_STEPS": str(steps), "PYTHONPATH": str(ROOT), **IN_A_HURRY}
    execute(notebook, FOLDER, tmp_path, environment)
    gc.collect()  # Unclosed resources fail this test, not a later one.
    outputs = outputs_of(notebook)

    assert not [out.text for out in outputs if out.get("name") == "stderr"]
    shown = pictures_of(notebook)
    assert len(shown) == pictures
    for picture in shown:
        assert shows_something(io.BytesIO(base64.b64decode(picture)), 350)

    *_, last = [out.text for out in outputs if out.get("name") == "stdout"]
    assert least_accuracy < float(last.split("test_accuracy")[1]) < 1
