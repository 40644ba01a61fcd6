"""Command line: `python -m examples.mnist train | evaluate | predict`."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
from absl import logging as absl_logging

from examples.mnist import data, evaluate
from examples.mnist.models import MODELS
from examples.mnist.runs import Config, Run, RunError
from examples.mnist.train import OPTIMIZERS, SCHEDULES, train, trained
from examples.study import positive


def parser() -> argparse.ArgumentParser:
    """The arguments of the three commands."""
    default = Config()
    top = argparse.ArgumentParser(prog="python -m examples.mnist", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    digits = argparse.ArgumentParser(add_help=False)
    digits.add_argument(
        "--data-dir",
        help="folder of the four IDX files of MNIST, plain or .gz"
        " (default: the 8,000 + 2,000 digits that come with this example)",
    )
    digits.add_argument("--download", action="store_true", help="fetch MNIST into --data-dir first")
    digits.add_argument("--mirror", default=data.DEFAULT_MIRROR, help="where from (%(default)s)")

    t = commands.add_parser("train", parents=[digits], help="train a model")
    t.add_argument("--model", choices=MODELS, default=default.model)
    t.add_argument("--optimizer", choices=OPTIMIZERS, default=default.optimizer)
    t.add_argument("--learning-rate", type=_rate, default=default.learning_rate)
    t.add_argument("--schedule", choices=SCHEDULES, default=default.schedule)
    t.add_argument("--epochs", type=positive, default=default.epochs)
    t.add_argument("--batch-size", type=positive, default=default.batch_size)
    t.add_argument("--seed", type=int, default=default.seed)
    t.add_argument("--augment", action="store_true", help="shift and turn the digits at random")
    t.add_argument(
        "--out", type=Path, default=Path("runs/mnist"), help="folder of the run (%(default)s)"
    )
    t.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")

    e = commands.add_parser("evaluate", parents=[digits], help="loss and accuracy of a run")
    e.add_argument("run", type=Path, metavar="RUN")

    p = commands.add_parser("predict", help="what digits a run sees in images")
    p.add_argument("run", type=Path, metavar="RUN")
    p.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG or IDX")
    return top


def _rate(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be in [0, inf), got {text}")
    return number


def _digits(arguments: argparse.Namespace, data_dir: str | None) -> data.Digits:
    folder = Path(data_dir) if data_dir else None
    if arguments.download:
        if folder is None:
            raise data.DataError("--download needs a folder; write --data-dir DIR")
        data.download(folder, arguments.mirror)
    return data.load(folder)


def _train(arguments: argparse.Namespace) -> None:
    names = [field.name for field in dataclasses.fields(Config)]
    config = Config(**{name: getattr(arguments, name) for name in names})
    digits = _digits(arguments, config.data_dir)
    # Before a folder is made: is there a batch at all?
    data.batches(jax.random.key(0), len(digits.train_images), config.batch_size)
    if arguments.resume and (arguments.out / "config.json").exists():
        run = Run.open(arguments.out)
        differing = [name for name in names if getattr(run.config, name) != getattr(config, name)]
        if differing:
            raise RunError(
                f"{arguments.out} was trained with other settings ({', '.join(differing)});"
                f" resume with the same, or choose another --out"
            )
    else:
        run = Run.create(arguments.out, config)
    print(json.dumps(train(run, digits)))


def _evaluate(arguments: argparse.Namespace) -> None:
    run = Run.open(arguments.run)
    graph, params = trained(run)
    digits = _digits(arguments, arguments.data_dir or run.config.data_dir)
    print(json.dumps(evaluate.evaluate(graph, params, digits.test_images, digits.test_labels)))


def _predict(arguments: argparse.Namespace) -> None:
    run = Run.open(arguments.run)
    graph, params = trained(run)
    for path in arguments.images:
        images = evaluate.read_digits(path)
        for i, p in enumerate(np.exp(evaluate.log_probabilities(graph, params, images))):
            name = f"{path}[{i}]" if len(images) > 1 else f"{path}"
            print(f"{name}: {p.argmax()} ({p.max():.1%})")


def main() -> int:
    """Runs one command; what the user can mend is one line on stderr and the exit status 1."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file it writes.
    logging.getLogger("jax").setLevel(logging.ERROR)
    arguments = parser().parse_args()
    try:
        {"train": _train, "evaluate": _evaluate, "predict": _predict}[arguments.command](arguments)
    except (data.DataError, RunError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
