"""The commands that train and measure a model: train, evaluate."""

import argparse
import contextlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from examples import strict_json
from examples.lock import locked
from examples.mnist import data, distributed, evaluate, runs
from examples.mnist.config import Config, resumed
from examples.mnist.models import MODELS
from examples.mnist.runs import Run, RunError
from examples.mnist.train import OPTIMIZERS, SCHEDULES, train, trained
from examples.options import number, positive, rate, whole

seed = number(int, "a whole number of 64 bits", lambda n: -(2**63) <= n < 2**63)
process_id = number(int, "a whole number of at least 0", lambda n: n >= 0)

# The settings of a run as options; `add_commands` adds the defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"choices": MODELS, "help": "the network"},
    "--optimizer": {
        "choices": OPTIMIZERS,
        "help": "sgd and momentum (SGD with momentum 0.9) are Optax's, as baselines;"
        " they want a --learning-rate near 0.3 and 0.03",
    },
    "--learning-rate": {"type": rate, "metavar": "RATE", "help": "the peak of the schedule"},
    "--schedule": {"choices": SCHEDULES, "help": "of the learning rate"},
    "--epochs": {"type": positive, "metavar": "N", "help": "passes over the training digits"},
    "--batch-size": {"type": positive, "metavar": "N", "help": "digits per step"},
    "--seed": {"type": seed, "metavar": "N", "help": "of parameters, order and --augment"},
    "--augment": {"action": "store_true", "help": "shift and turn the digits at random"},
}


def add_commands(commands: Any) -> None:
    """Their arguments, and the function of each as the attribute `call`."""
    default = Config()

    digits = argparse.ArgumentParser(add_help=False)
    digits.add_argument(
        "--data-dir",
        help="folder of the four IDX files of MNIST, plain or .gz"
        " (default: the 8,000 + 2,000 digits included in this example)",
    )
    digits.add_argument("--download", action="store_true", help="fetch MNIST into --data-dir first")
    digits.add_argument(
        "--mirror", default=data.DEFAULT_MIRROR, help="where from (default: %(default)s)"
    )

    t = commands.add_parser("train", parents=[digits], help="train a model")
    for option, keywords in OPTIONS.items():
        value = getattr(default, option.strip("-").replace("-", "_"))
        about = f"{keywords['help']} (default: {'off' if value is False else value})"
        # None if the command omits it: a resumed run has its own.
        more = {**keywords, "default": None, "help": about}
        t.add_argument(option, **more)
    t.add_argument(
        "--out",
        type=Path,
        default=Path("runs/mnist"),
        help="folder of the run (default: %(default)s)",
    )
    t.add_argument(
        "--resume",
        action="store_true",
        help="resume from the last checkpoint in --out, with the run's own settings;"
        " more --epochs than it has extend it",
    )
    t.add_argument(
        "--stretch",
        action="store_true",
        help="with --resume and more --epochs: stretch a cosine or warmup-stable-decay schedule to"
        " all of them; the learning rate rises again",
    )
    t.add_argument(
        "--processes",
        type=_processes,
        default=1,
        metavar="N",
        help="train in this many processes (default: %(default)s), started on this machine unless"
        " --process-id selects one; auto: detected from SLURM, GKE or a TPU pod",
    )
    t.add_argument("--process-id", type=process_id, help="the id of this process, from 0")
    t.add_argument(
        "--coordinator", type=_address, metavar="HOST:PORT", help="an address of process 0"
    )

    e = commands.add_parser("evaluate", parents=[digits], help="loss and accuracy of a run")
    e.add_argument("run", type=Path, metavar="RUN")
    t.set_defaults(call=_train)
    e.set_defaults(call=_evaluate)


def _processes(text: str) -> int | str:
    with contextlib.suppress(argparse.ArgumentTypeError):
        return text if text == "auto" else positive(text)
    raise argparse.ArgumentTypeError(
        f'must be a whole number of at least 1, or "auto", got {text!r}'
    )


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    with contextlib.suppress(argparse.ArgumentTypeError):
        if host and whole(1, 65535)(port):
            return text
    raise argparse.ArgumentTypeError(f"must be HOST:PORT, got {text!r}")


def _digits(arguments: argparse.Namespace, data_dir: str | None) -> data.Digits:
    folder = Path(data_dir) if data_dir else None
    if arguments.download:
        if folder is None:
            raise data.DataError("--download needs a folder; write --data-dir DIR")
        data.download(folder, arguments.mirror)
    return data.load(folder)


def settings(arguments: argparse.Namespace) -> Config:
    """The command's settings; for a resumed run the run's own, checked against them."""
    named = {field.name: getattr(arguments, field.name, None) for field in fields(Config)}
    given = {name: value for name, value in named.items() if value is not None}
    if arguments.resume and (arguments.out / "config.json").exists():
        return resumed(runs.settings(arguments.out), given, arguments.stretch, arguments.out)
    return Config(**given)


def _train(arguments: argparse.Namespace) -> int:
    several = arguments.processes != 1
    if several and not distributed.is_worker():
        # Leave the devices to the processes that train: the first one takes a GPU's memory.
        if arguments.process_id in (None, 0) and not arguments.resume:
            Run.check_new(arguments.out)
        command = ["-m", "examples.mnist", *sys.argv[1:]]
        return distributed.launch(arguments.processes, arguments.process_id, command)
    if arguments.stretch and not arguments.resume:
        raise RunError("--stretch requires --resume; add it")
    config = settings(arguments)
    if several:
        distributed.join(arguments.processes, arguments.process_id, arguments.coordinator)
    devices = distributed.Devices.of_all_processes() if several else distributed.ONE
    digits = _digits(arguments, config.data_dir)
    # Before creating a folder: is there at least one batch?
    data.batches(jax.random.key(0), len(digits.train_images), config.batch_size)
    devices.check(config.batch_size)
    # The first process holds the lock: all end when it does, and it ends when another does.
    with locked(arguments.out) if distributed.speaks() else contextlib.nullcontext():
        begun = (arguments.out / "config.json").exists()
        distributed.wait_for_all("looked for a run")
        if distributed.speaks():
            if not (arguments.resume and begun):
                Run.prepare(arguments.out, config)
            elif config.epochs > runs.settings(arguments.out).epochs:
                Run.extend(arguments.out, config)
        distributed.wait_for_all("made a run")
        run = Run.open(arguments.out)
        if run.config != config:
            raise RunError(f"{arguments.out} was changed meanwhile; give the command again")
        summary = train(run, digits, devices)
    if distributed.speaks():
        print(strict_json.dumps(summary))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    run = Run.open(arguments.run)
    graph, params = trained(run)
    digits = _digits(arguments, arguments.data_dir or run.config.data_dir)
    found = evaluate.evaluate(graph, params, digits.test_images, digits.test_labels)
    print(strict_json.dumps(found))
    return 0
