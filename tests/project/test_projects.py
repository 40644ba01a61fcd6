"""The runner of other projects' tests: its plugin on a small project, and its published table."""

import json
import os
import subprocess
import sys

import pytest

from tests.catalogue.pages import ROOT
from tests.catalogue.pages import table as published
from tests.peers.projects import COLUMNS, PLUGIN, PROJECTS, table

pytestmark = pytest.mark.slow

OF_A_PROJECT = """
from optax import adam, chain, nadam, sgd


def test_of_the_family():
    chain(adam(1e-3), nadam(1e-3)).init({})
    assert adam.__module__.startswith("adam_jax.")


def test_of_another():
    sgd(1e-3).init({})


def test_that_fails():
    raise AssertionError
"""


def report(folder, ours):
    """The plugin's report on a project with three tests."""
    (folder / "test_project.py").write_text(OF_A_PROJECT)
    (folder / "pytest.ini").write_text("[pytest]\n")
    where = folder / "report.json"
    settings = {"PEERS_OURS": ours, "PEERS_REPORT": str(where), "JAX_PLATFORMS": "cpu"}
    settings |= {"PYTHONPATH": f"{PLUGIN.parent}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "-p", PLUGIN.stem]
    subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True)
    found = json.loads(where.read_text())
    short = {test.split("::")[1]: outcome for test, outcome in found["outcomes"].items()}
    return short, [test.split("::")[1] for test in found["with_ours"]], found["names"]


def test_the_plugin_replaces_names_where_a_project_imports_them(tmp_path):
    outcomes, with_ours, names = report(tmp_path, "1")
    assert with_ours == ["test_of_the_family"]
    assert outcomes["test_of_the_family"] == outcomes["test_of_another"] == "passed"
    assert outcomes["test_that_fails"] == "failed"
    assert {"adam", "nadamw", "lion", "scale_by_adam", "clip_by_global_norm"} <= set(names)
    assert not {"schedules", "Transformation", "step"} & set(names)


def test_the_plugin_leaves_optax_as_it_is_otherwise(tmp_path):
    outcomes, with_ours, names = report(tmp_path, "0")
    assert outcomes["test_of_the_family"] == "failed" and with_ours == names == []


def test_the_published_table_is_of_these_projects():
    rows = published(ROOT / "benchmarks" / "RESULTS.md", "## Other projects' tests")
    assert [(row["project"], row["version"]) for row in rows] == [
        (project.name, project.version) for project in PROJECTS
    ]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        assert row["fail with ours only"] == "0" and int(row["call ours"]) > 0
    assert table(rows).splitlines()[2:] == [f"| {' | '.join(row.values())} |" for row in rows]
