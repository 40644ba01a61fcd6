"""Handwritten digits: trains a classifier, exports it to one file, serves it over HTTP.

train      a run: metrics, checkpoints and pictures in --out
evaluate   its loss and accuracy on the test digits
predict    the digits of pictures
export     its model as one file that needs neither Flax nor this code
serve      a page to draw on, and predictions over HTTP
"""

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from examples.mnist import export, pictures
from examples.shared import command_line, strict_json
from examples.shared.command_line import UserError, positive, rate, seed, whole
from examples.shared.files import locked

FAST = {"model": "mlp", "epochs": 2}
seconds = command_line.number(float, "a number in (0, 3600]", lambda x: 0 < x <= 3600)


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m examples.mnist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    digits = argparse.ArgumentParser(add_help=False)
    digits.add_argument(
        "--data-dir",
        help="folder of the four IDX files of MNIST, plain or .gz"
        " (default: the 8,000 + 2,000 digits included in this example)",
    )
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("model", type=Path, metavar="RUN|FILE", help="a run, or a file of export")

    t = commands.add_parser("train", parents=[digits], help="train a model")
    # None if the command omits it: a resumed run has its own.
    t.add_argument("--model", metavar="NAME", help="softmax, mlp, small-cnn or cnn (default: cnn)")
    t.add_argument(
        "--optimizer",
        metavar="NAME",
        help="a member of the package; or, as baselines of Optax, sgd and momentum (SGD with"
        " momentum 0.9), which want a --learning-rate near 0.3 and 0.03 (default: adam)",
    )
    t.add_argument("--learning-rate", type=rate, metavar="RATE", help="the peak (default: 0.001)")
    t.add_argument(
        "--schedule",
        metavar="NAME",
        help="constant, cosine, inverse-sqrt or warmup-stable-decay (default: constant)",
    )
    t.add_argument("--epochs", type=positive, metavar="N", help="(default: 4)")
    t.add_argument("--batch-size", type=positive, metavar="N", help="(default: 64)")
    t.add_argument("--seed", type=seed, metavar="N", help="(default: 0)")
    t.add_argument("--augment", action="store_true", default=None, help="shift and turn digits")
    t.add_argument(
        "--rewind-after",
        type=positive,
        metavar="N",
        help="clip spikes of the gradient; after N in an epoch, repeat it from the checkpoint"
        " before, in another order of the digits",
    )
    t.add_argument("--fast", action="store_true", help="an MLP for 2 epochs, about 10 s")
    t.add_argument(
        "--out", type=Path, default=Path("runs/mnist"), help="of the run (default: %(default)s)"
    )
    t.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in --out, with the run's own settings",
    )
    e = commands.add_parser("evaluate", parents=[digits], help="loss and accuracy of a run")
    e.add_argument("run", type=Path, metavar="RUN")
    p = commands.add_parser("predict", parents=[trained], help="classify the digits in images")
    p.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, ... or IDX")
    x = commands.add_parser("export", help="write a run's model to one file that runs without it")
    x.add_argument("run", type=Path, metavar="RUN")
    x.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="(default: RUN/model.stablehlo)"
    )
    s = commands.add_parser("serve", parents=[trained], help="classify digits over HTTP")
    s.add_argument("--host", default="127.0.0.1", help="to listen on (default: %(default)s)")
    s.add_argument(
        "--port", type=whole(0, 65535), default=8000, help="0: any free one (default: %(default)s)"
    )
    s.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for a request's headers and body, and again for its answer (default: %(default)s)",
    )
    return top


def train(options: argparse.Namespace) -> None:
    """Trains a new run, or continues one."""
    from examples.mnist import data
    from examples.mnist.runs import Config, Run, resumed
    from examples.mnist.train import train

    named = {field.name: getattr(options, field.name) for field in dataclasses.fields(Config)}
    given = {name: value for name, value in named.items() if value is not None}
    if options.fast:
        print("about 10 s on two cores")
        given = FAST | given
    if options.resume:
        config = resumed(options.out, given)
    elif (options.out / "config.json").exists():
        raise UserError(
            f"{options.out} already holds a run; continue it with --resume, or choose another --out"
        )
    else:
        config = Config(**given)
    digits = data.load(Path(config.data_dir) if config.data_dir else None)
    # Before there is a folder: is there at least one batch?
    data.batches(jax.random.key(0), len(digits.train_images), config.batch_size)
    with locked(options.out):
        Run.prepare(options.out, config)
        print(strict_json.dumps(train(Run(options.out), digits)))


def evaluate(options: argparse.Namespace) -> None:
    """Prints the loss and the accuracy of a run."""
    from examples.mnist import data
    from examples.mnist.runs import Run
    from examples.mnist.train import evaluate, trained

    run = Run(options.run)
    folder = options.data_dir or run.config.data_dir
    digits = data.load(Path(folder) if folder else None)
    print(strict_json.dumps(evaluate(*trained(run), digits.test_images, digits.test_labels)))


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Says what to install."""
    try:
        yield
    except ImportError as missing:
        raise UserError(f"{missing}; pip install -e '.[examples,serve]'") from missing


def _predictor(model: Path) -> export.Predict:
    with _extra():
        program = export.of_run(model) if model.is_dir() else export.load(model)
    return export.predictor(program)


def predict(options: argparse.Namespace) -> None:
    """Prints the digit of each picture."""
    probabilities = _predictor(options.model)
    for path in options.images:
        digits = pictures.read_digits(path)
        for i, digit in enumerate(digits):
            [p] = probabilities(digit[None])
            name = f"{path}[{i}]" if len(digits) > 1 else f"{path}"
            print(f"{name}: {p.argmax()} ({p.max():.1%})")


def export_(options: argparse.Namespace) -> None:
    """Writes the model of a run."""
    file = options.file or options.run / "model.stablehlo"
    with _extra():
        size = export.write(export.of_run(options.run), file)
    print(f"{file}: {size:,} bytes, for {' and '.join(export.PLATFORMS)}")


def serve(options: argparse.Namespace) -> None:
    """Serves a model until it is stopped."""
    with _extra():
        from examples.mnist.serve import serve

    serve(_predictor(options.model), options.host, options.port, options.timeout)


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export_,
    "serve": serve,
}


def main(argv: list[str] | None = None) -> None:
    """Runs one command."""
    options: Any = parser().parse_args(argv)
    resume = "; run the same command with --resume to continue"
    command_line.run(
        functools.partial(COMMANDS[options.command], options),
        resume if options.command == "train" else "",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
