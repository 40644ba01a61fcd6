"""Runs the smoke tests of the built package on the oldest and newest versions of JAX and Optax.

    python -m tests.tools.versions [oldest] [newest]
    python -m tests.tools.versions --here oldest|smoke

Each run uses a new virtual environment and a folder without the package's source. The oldest
versions are those of the dependency group `oldest`, on this Python, with the wheel. The newest
Python found runs the newest JAX, with the sdist.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.tools.package import ROOT, built, without_the_package

OLDEST, NEWEST = ROOT / ".venv-oldest", ROOT / ".venv-newest"
# Unmarked tests that depend most on the versions.
ALSO_ON_THE_OLDEST = [
    *("tests/core/test_boxes.py", "tests/wrap/test_weights.py", "tests/convert/test_optax.py"),
    *("tests/groups/test_groups.py", "tests/hyperparams/test_hyperparams.py"),
]


def interpreters() -> list[Path]:
    """Every Python on the path and of pyenv, newest first."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*map(Path, os.environ["PATH"].split(os.pathsep)), *pyenv.glob("versions/*/bin")]
    found = [python for folder in folders for python in folder.glob("python3.[0-9][0-9]")]
    return sorted(found, key=lambda python: python.name, reverse=True)


def files() -> list[str]:
    """The files with smoke tests; importing the others takes longer than running the tests."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    smoke = [path for path in found if "pytest.mark.smoke" in path.read_text()]
    return [str(path.relative_to(ROOT)) for path in smoke]


def made(venv: Path, python: str | Path, group: str, package: Path) -> bool:
    """Creates an environment with the built package and a dependency group; returns success."""
    shutil.rmtree(venv, ignore_errors=True)
    if subprocess.run([python, "-m", "venv", venv]).returncode:
        return False  # For example an entry of pyenv for a version that is not active.
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    # Bytecode is not compiled in advance, because most modules are never imported.
    extras = "" if group == "oldest" else "[examples]"
    install = [*pip, "--no-compile", "--group", group, f"{package}{extras}"]
    if subprocess.run(install, cwd=ROOT).returncode:
        return False
    show = "import jax, optax, sys; print('smoke tests on Python', sys.version.split()[0],"
    show += " 'jax', jax.__version__, 'optax', optax.__version__, flush=True)"
    subprocess.run([venv / "bin" / "python", "-c", show], check=True)
    return True


def tested(python: str | Path, *arguments: str, folder: Path = ROOT) -> int:
    pytest = [python, "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
    return subprocess.run([*pytest, *arguments], cwd=folder).returncode


def of_the_oldest(python: str | Path, folder: Path = ROOT) -> int:
    """The status of smoke tests, tests that depend most on versions, and the pages' samples."""
    # Examples need newer versions of Flax.
    smoke = [name for name in files() if "examples" not in name and "test_pages" not in name]
    # These versions of JAX and Flax raise deprecation warnings about each other.
    quiet = ("-W", "ignore::DeprecationWarning")
    status = tested(python, *quiet, "-m", "smoke", *smoke, folder=folder)
    also = ("-m", "not bits and not slow", *ALSO_ON_THE_OLDEST)
    status = status or tested(python, *quiet, *also, folder=folder)
    pages = ("-m", "not peers", "-k", "samples_run", "tests/docs/test_pages.py")
    return status or tested(python, *quiet, *pages, folder=folder)


def of_all(python: str | Path, folder: Path = ROOT) -> int:
    return tested(python, "-m", "smoke", *files(), folder=folder)


def oldest(wheel: Path, sdist: Path, folder: Path) -> int:
    """Tests on the oldest versions; returns the exit status."""
    made_it = made(OLDEST, sys.executable, "oldest", wheel)
    return of_the_oldest(OLDEST / "bin" / "python", folder) if made_it else 1


def newest(wheel: Path, sdist: Path, folder: Path) -> int:
    """Tests on the newest Python for which JAX can be installed; returns the exit status."""
    # Newest first; the newest may be too new for JAX's wheels.
    for python in interpreters():
        if made(NEWEST, python, "smoke", sdist):
            return of_all(NEWEST / "bin" / "python", folder)
        print(f"smoke tests with {python}: its packages cannot be installed")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", help="oldest, newest; both if left out")
    parser.add_argument(
        "--here",
        choices=["oldest", "smoke"],
        help="the tests of that dependency group in this environment, where it is installed",
    )
    arguments = parser.parse_args()
    if arguments.here:
        return {"oldest": of_the_oldest, "smoke": of_all}[arguments.here](sys.executable)
    ways = {"oldest": oldest, "newest": newest}
    with tempfile.TemporaryDirectory() as name:
        wheel, sdist = built(Path(name))
        folder = without_the_package(Path(name) / "tests")
        chosen = [ways[which] for which in arguments.which or ways]
        return next((status for way in chosen if (status := way(wheel, sdist, folder))), 0)


if __name__ == "__main__":
    sys.exit(main())
