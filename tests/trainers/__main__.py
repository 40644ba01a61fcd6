"""Runs members of this package inside the training loops of other projects, beside Optax's.

With Tunix, it also follows docs/train-an-llm.md, and compares what the page's commands print.

python -m tests.trainers [tunix maxtext eformer levanter keras]

Each trainer gets an environment in build/trainers, made once. The variable TRAINERS names another
folder of environments. Needs access to the package index, and takes about ten minutes per trainer.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.catalogue.pages import DOCS, ROOT, samples
from tests.tools.versions import interpreters

FOLDER = Path(os.environ.get("TRAINERS", ROOT / "build" / "trainers"))


class Trainer(NamedTuple):
    """A program of this folder, and what to install for it."""

    program: str
    requirements: tuple[str, ...]
    python: str = "3.11"


# MaxText's distribution requires nothing. Its extras are of hundreds of packages, with libtpu.
MAXTEXT = """
jax==0.11.2 jaxlib==0.11.2 flax optax>=0.2.8 absl-py aqtp array-record chex datasets drjax einshape
cloud-accelerator-diagnostics gcsfs google-cloud-mldiagnostics google-cloud-monitoring
google-cloud-storage grain jinja2 jsonlines math-verify ml-collections ml-goodput-measurement nltk
omegaconf orbax-checkpoint pathwaysutils pillow psutil pydantic qwix sentencepiece tensorboardx
tiktoken tokamax transformers
"""
TRAINERS = {
    "tunix": Trainer("tunix_peft", ("google-tunix==0.1.7", "jax==0.10.2")),
    "maxtext": Trainer("maxtext_train", ("maxtext==0.2.5", *MAXTEXT.split()), "3.12"),
    "eformer": Trainer("eformer_factory", ("eformer==0.0.101", "jax==0.10.2")),
    "levanter": Trainer(
        "levanter_trainer", ("--pre", "marin-levanter==0.2.227.dev40316220070"), "3.12"
    ),
    "keras": Trainer("keras_fit", ("keras==3.15.1", "jax==0.10.2", "optax==0.2.8", "pytest")),
}


def environment(name: str, trainer: Trainer) -> Path:
    """The Python of the trainer's environment, which is made if it is not there."""
    python = FOLDER / name / "bin" / "python"
    if not python.exists():
        print(f"installing {name}", flush=True)
        base = f"python{trainer.python}"
        # A name of pyenv can be on the path without being active.
        made = (
            not subprocess.run([path, "-m", "venv", "--clear", python.parents[1]]).returncode
            for path in interpreters()
            if path.name == base
        )
        if not any(made):
            raise RuntimeError(f"{name} needs {base} on the path or in pyenv.")
        install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
        try:
            subprocess.run([*install, *trainer.requirements], check=True)
        except BaseException:
            shutil.rmtree(python.parents[1])
            raise
    return python


def run(trainer: Trainer, python: Path, devices: int) -> list[dict]:
    """The cells that the program prints, on that many devices of the CPU."""
    log = FOLDER / f"{trainer.program}-{devices}.log"
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    with log.open("w") as errors, tempfile.TemporaryDirectory() as cache:
        # A run, its first half and its second half are one program: compiled once.
        settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
        settings |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        command = [python, "-m", f"tests.trainers.{trainer.program}"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=errors
        )
    if done.returncode:
        raise RuntimeError(f"{trainer.program} failed, see {log}:\n{log.read_text()[-2000:]}")
    lines = done.stdout.decode().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def follow(page: Path, python: Path) -> None:
    """Saves the page's program, and runs each block of commands that has an output."""
    text = page.read_text()
    [name] = re.findall(r"^Save this as `(.*)`", text, re.MULTILINE)
    [(program, _)] = samples(page)
    pattern = r"^```sh\n([^`]*)^```\n\n```text\n([^`]*)^```"
    variables = {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_text(program)
        for commands, expected in re.findall(pattern, text, re.MULTILINE):
            shell = ["bash", "-ec", commands]
            done = subprocess.run(
                shell, cwd=folder, env=os.environ | variables, capture_output=True, text=True
            )
            if done.returncode or done.stdout != expected:
                raise RuntimeError(f"{commands}\n{done.stderr[-2000:]}\n{done.stdout}")


def own_tests(python: Path, of: str) -> str:
    """The results of Keras' own tests, of its optimizers or of ours."""
    settings = {"OWN_TESTS_OF": of, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [python, "-m", "tests.trainers.keras_own"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    (FOLDER / f"keras_own-{of}.log").write_text(done.stdout + done.stderr)
    return f"{of}, {done.stdout.splitlines()[-1]}"


def tables(rows: list[dict]) -> str:
    """For each trainer a table of optimizer and mesh, then the reasons that its cells refer to."""
    lines = []
    for trainer in dict.fromkeys(row["trainer"] for row in rows):
        own = {(x["optimizer"], x["mesh"]): x for x in rows if x["trainer"] == trainer}
        optimizers, meshes = (list(dict.fromkeys(keys)) for keys in zip(*own, strict=True))
        lines += [f"| {' | '.join([trainer, *meshes])} |", "| --- " * (len(meshes) + 1) + "|"]
        reasons: dict[str, int] = {}
        for optimizer in optimizers:
            cells = [cell(own.get((optimizer, mesh)), reasons) for mesh in meshes]
            lines.append(f"| {' | '.join([optimizer, *cells])} |")
        lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]
    return "\n".join(lines)


def cell(row: dict | None, reasons: dict[str, int]) -> str:
    """What is not right, with the number of its reason; `reasons` gets new ones."""
    if row is None:
        return ""
    said = []
    for part in ("losses", "resume", "rate"):
        if row[part] not in ("right", "none", ""):
            optax = f" With Optax: {row['with Optax']}" if row["with Optax"] else ""
            reason = " ".join(f"{part}: {row[part]}.{optax}".split())
            said.append(f"{part} ({reasons.setdefault(reason, len(reasons) + 1)})")
    rate = ", no rate" if row["rate"] == "none" else ""
    return (", ".join(said) or "right") + rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainers", nargs="*", metavar="trainer", help=f"of {', '.join(TRAINERS)}")
    chosen, rows = parser.parse_args().trainers or list(TRAINERS), []
    if unknown := set(chosen) - set(TRAINERS):
        parser.error(f"no trainer is called {', '.join(sorted(unknown))}: {', '.join(TRAINERS)}")
    for name in chosen:
        python = environment(name, TRAINERS[name])
        for devices in (1, 4):
            rows += run(TRAINERS[name], python, devices)
        if name == "tunix":
            follow(DOCS / "train-an-llm.md", python)
        if name == "keras":
            print("Keras' own tests:", "; ".join(own_tests(python, of) for of in ("Keras", "ours")))
    print(tables(rows))


if __name__ == "__main__":
    sys.exit(main())
