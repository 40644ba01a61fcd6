"""Runs the smoke tests on the newest Python of this machine, in a virtual environment of its own.

    python -m tests.newest_python

The newest Python gets the newest JAX; the suite's own environment may be held at an older one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENV = ROOT / ".venv-newest"


def interpreters() -> list[tuple[tuple[int, int], list[str], dict[str, str]]]:
    """Version, command and environment of every Python that starts, oldest first."""
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


def files() -> list[Path]:
    """The test files that have smoke tests: to import the others takes longer than those run."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if "pytest.mark.smoke" in path.read_text()]


def main() -> int:
    """Returns the exit status of the smoke tests; 0, saying why, where there is nothing new."""
    # Newest first: the newest of all may be too new for JAX's wheels.
    newer = [entry for entry in reversed(interpreters()) if entry[0] > sys.version_info[:2]]
    if not newer:
        print(
            f"smoke tests on a newer Python: skipped, none newer than {sys.version.split()[0]} here"
        )
        return 0
    for (major, minor), command, environment in newer:
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([*command, "-m", "venv", VENV], env=environment, check=True)
        python = [VENV / "bin" / "python", "-m"]
        subprocess.run([*python, "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        # Not compiled: of most packages little is imported.
        install = [*python, "pip", "install", "--quiet", "--no-compile", "--group", "smoke"]
        install += ["--editable", "."]
        if subprocess.run(install, cwd=ROOT).returncode:
            print(f"smoke tests on Python {major}.{minor}: its packages cannot be installed")
            continue
        show = "import jax, optax, sys; print('smoke tests on Python', sys.version.split()[0],"
        show += " 'jax', jax.__version__, 'optax', optax.__version__, flush=True)"
        subprocess.run([VENV / "bin" / "python", "-c", show], check=True)
        smoke = [*python, "pytest", "-n", "auto", "-m", "smoke", *files()]
        return subprocess.run(smoke, cwd=ROOT).returncode
    print("smoke tests on a newer Python: skipped, JAX cannot be installed on any that is here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
