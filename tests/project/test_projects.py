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
from optax import adam, sgd


def test_of_the_family():
    adam(1e-3).init({})
    assert adam.__module__.startswith("adam_jax.")


def test_of_another():
    sgd(1e-3).init({})
"""


@pytest.mark.parametrize("ours", [True, False])
def test_the_plugin_replaces_names_where_a_project_imports_them(tmp_path, ours):
    (tmp_path / "test_project.py").write_text(OF_A_PROJECT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    where = tmp_path / "report.json"
    settings = {"PEERS_OURS": f"{ours:d}", "PEERS_REPORT": str(where), "JAX_PLATFORMS": "cpu"}
    settings |= {"PYTHONPATH": f"{PLUGIN.parent}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "-p", PLUGIN.stem]
    subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True)
    found = json.loads(where.read_text())
    assert found["outcomes"] == {
        "test_project.py::test_of_the_family": "passed" if ours else "failed",
        "test_project.py::test_of_another": "passed",
    }
    assert found["with_ours"] == ["test_project.py::test_of_the_family"] * ours
    names = {"adam", "nadamw", "lion", "scale_by_adam", "clip_by_global_norm"}
    assert names <= {*found["names"]} if ours else found["names"] == []
    assert not {"schedules", "Transformation", "step"} & {*found["names"]}


def test_the_published_table_is_of_these_projects():
    rows = published(ROOT / "benchmarks" / "RESULTS.md", "## Other projects' tests")
    assert [(row["project"], row["version"]) for row in rows] == [
        (project.name, project.version) for project in PROJECTS
    ]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        assert row["fail with ours only"] == "0" and int(row["call ours"]) > 0
    assert table(rows).splitlines()[2:] == [f"| {' | '.join(row.values())} |" for row in rows]
