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


def interpreters() -> list[tuple[tuple[int, int], list[str], dict[str, str]]]:
    """Version, command and environment of every working Python, oldest first."""
    candidates: list[tuple[str, dict[str, str]]] = [("python3", {})]
    candidates += [(f"python3.{minor}", {}) for minor in range(11, 30)]
    if pyenv := shutil.which("pyenv"):
        listed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True)
        candidates += [("python3", {"PYENV_VERSION": name}) for name in listed.stdout.split()]
    found = []
    for name, extra in candidates:
        if (command := shutil.which(name)) is None:
            continue
        environment = {**os.environ, **extra}
        code = "import sys, venv; print(*sys.version_info[:2])"
        done = subprocess.run(
            [command, "-c", code], capture_output=True, text=True, env=environment
        )
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            found.append(((major, minor), [command], environment))
    return sorted(found, key=lambda entry: entry[0])


def files() -> list[str]:
    """The files with smoke tests; importing the others takes longer than running the tests."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if _is_smoke(path)]


def _is_smoke(path: Path) -> bool:
    return "pytest.mark.smoke" in path.read_text()


def made(
    venv: Path, command: list[str], environment: dict[str, str], group: str, package: Path
) -> bool:
    """Creates an environment with the built package and a dependency group; returns success."""
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([*command, "-m", "venv", venv], env=environment, check=True)
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
    """Runs pytest; returns its exit status."""
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
    """The exit status of all smoke tests."""
    return tested(python, "-m", "smoke", *files(), folder=folder)


def oldest(wheel: Path, sdist: Path, folder: Path) -> int:
    """Tests on the oldest versions; returns the exit status."""
    made_it = made(OLDEST, [sys.executable], dict(os.environ), "oldest", wheel)
    return of_the_oldest(OLDEST / "bin" / "python", folder) if made_it else 1


def newest(wheel: Path, sdist: Path, folder: Path) -> int:
    """Tests on the newest Python for which JAX can be installed; returns the exit status."""
    # Newest first; the newest may be too new for JAX's wheels.
    for (major, minor), command, environment in reversed(interpreters()):
        if made(NEWEST, command, environment, "smoke", sdist):
            return of_all(NEWEST / "bin" / "python", folder)
        print(f"smoke tests on Python {major}.{minor}: its packages cannot be installed")
    return 1


def main() -> int:
    """Runs the chosen tests; returns the first exit status that is not 0."""
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
