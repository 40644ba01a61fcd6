"""Runs the optimizer tests of other projects, with Optax's functions and with ours in their place.

python -m tests.peers.projects [numpyro flax]

Each project gets a virtual environment and its source distribution in a folder below .projects.
Later runs reuse both; adam_jax is reinstalled every time. Needs access to the package index.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.catalogue.compilation import IN_A_HURRY

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".projects"
PLUGIN = Path(__file__).parent / "plugin" / "names_replaced.py"
COLUMNS = ("project", "version", "tests", "call ours")
COLUMNS += ("pass with Optax", "pass with ours", "fail with ours only")


class Project(NamedTuple):
    """A project, and its tests that use Optax, directly or indirectly."""

    name: str
    version: str
    tests: tuple[str, ...]
    needs: tuple[str, ...] = ()  # What tests import beside the project's requirements.
    options: tuple[str, ...] = ()  # For pytest.


# For all projects: the versions used for the figures in the documentation.
PINS = ("jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8", "pytest>=9,<10")

PROJECTS = (
    Project(
        "dynamax",
        "1.0.3",
        (
            "dynamax/parameters_test.py",
            "dynamax/utils/test_optimize.py",  # Takes 30,000 uncompiled steps.
            "dynamax/hidden_markov_model/models/test_models.py",
            "dynamax/linear_gaussian_ssm/models_test.py",
        ),
        options=("-k", "test_sgd or run_sgd or parameter"),
    ),
    Project("flowjax", "19.1.2", ("tests/test_train",), ("beartype", "numpyro")),
    Project("numpyro", "0.22.0", ("test/test_optimizers.py",)),
    Project(
        "flowMC",
        "0.6.4",
        (
            "tests/integration/test_normalizingFlow.py",
            "tests/unit/test_flowmatching.py",
            "tests/unit/test_strategies.py",
        ),
    ),
    Project(
        "blackjax",
        "1.7.1",
        (
            "tests/vi/test_fullrank_vi.py",
            "tests/vi/test_meanfield_vi.py",
            "tests/vi/test_svgd.py",
            "tests/adaptation/test_adaptation.py",
        ),
        ("chex",),
        ("-k", "VI or vi or svgd or SVGD or chees"),
    ),
    Project(
        "gpjax",
        "1.0.0",
        ("tests/test_fit.py", "tests/test_integration_equinox.py"),
        ("hypothesis",),
    ),
    Project(
        "flax",
        "0.12.8",
        (
            "tests/cursor_test.py",
            "tests/nnx/ema_test.py",
            "tests/nnx/integration_test.py",
            "tests/nnx/optimizer_test.py",
        ),
        ("absl-py", "cloudpickle"),
    ),
)


def source(project: Project) -> Path:
    """The unpacked source distribution; downloads it once."""
    place = FOLDER / project.name / project.version
    if not place.exists():
        downloads = FOLDER / project.name / "downloads"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(downloads)]
        subprocess.run([*command, f"{project.name}=={project.version}"], check=True)
        [archive] = downloads.glob("*.tar.gz")
        shutil.unpack_archive(archive, downloads, filter="data")
        [unpacked] = [path for path in downloads.iterdir() if path.is_dir()]
        unpacked.rename(place)
        shutil.rmtree(downloads)
    return place


def environment(project: Project, place: Path) -> Path:
    """The Python of an environment with the project, its test requirements and this adam_jax."""
    folder = place.with_name(f"{project.version}-environment")
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install(python, *PINS, *project.needs, str(place))
        complete.touch()
    # Not editable, because this package's `tests` would then precede the project's.
    install(python, "--no-deps", "--force-reinstall", str(ROOT))
    return python


def install(python: Path, *requirements: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)


def run(project: Project, place: Path, python: Path, ours: bool) -> dict[str, Any]:
    """Runs the project's tests; returns the plugin's report."""
    name = "ours" if ours else "optax"
    report, log = (place.with_name(f"{name}.{end}") for end in ("json", "log"))
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-p", PLUGIN.stem, "-p", "no:cacheprovider", "-q"]
    # Explicit, because pytest would otherwise find this package's settings in a parent folder.
    settings_file = "pytest.ini" if (place / "pytest.ini").exists() else "pyproject.toml"
    command += ["-c", settings_file]
    settings = {"PEERS_OURS": str(int(ours)), "PEERS_REPORT": str(report)}
    settings |= {"PYTHONPATH": str(PLUGIN.parent), "JAX_PLATFORMS": "cpu"}
    with log.open("w") as output:
        subprocess.run(
            [*command, *project.options, *project.tests],
            cwd=place,
            env=os.environ | IN_A_HURRY | settings,  # Otherwise most of the time is compilation.
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if not report.exists():
        raise RuntimeError(f"no test of {project.name} ran, see {log}:\n{log.read_text()[-2000:]}")
    return json.loads(report.read_text())


def passed(report: dict[str, Any]) -> set[str]:
    return {test for test, outcome in report["outcomes"].items() if outcome == "passed"}


def compare(project: Project) -> tuple[dict[str, Any], list[str]]:
    """A row of the table, and the tests that fail only with our functions."""
    place = source(project)
    python = environment(project, place)
    theirs, ours = (run(project, place, python, ours) for ours in (False, True))
    assert {"adam", "adamw", "chain", "scale_by_adam"} <= set(ours["names"])
    worse = sorted(passed(theirs) - passed(ours))
    return {
        "project": project.name,
        "version": project.version,
        "tests": len(theirs["outcomes"]),
        "call ours": len(ours["with_ours"]),
        "pass with Optax": len(passed(theirs)),
        "pass with ours": len(passed(ours)),
        "fail with ours only": len(worse),
    }, worse


def table(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[str(row[name]) for name in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Runs the projects in turn; returns 1 if a test passes only with Optax."""
    names = [project.name for project in PROJECTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", nargs="*", metavar="project", help=f"of {', '.join(names)}")
    chosen, rows, failures = parser.parse_args().projects or names, [], []
    if unknown := set(chosen) - set(names):
        parser.error(f"no project is called {', '.join(sorted(unknown))}: write {', '.join(names)}")
    for project in PROJECTS:
        if project.name in chosen:
            print(project.name, flush=True)
            row, worse = compare(project)
            rows.append(row)
            failures += [f"{project.name}: {test}" for test in worse]
    print(table(rows), *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
