"""The commands that use a trained model: predict, export, serve; Flax is imported only for runs."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples.mnist import exported, pictures
from examples.mnist.errors import UserError
from examples.options import number, whole

if TYPE_CHECKING:
    from examples.mnist.runs import Run

COMMANDS = ("predict", "export", "serve")
seconds = number(float, "a number in (0, 3600]", lambda x: 0 < x <= 3600)


def add_commands(commands: Any) -> None:
    """Their arguments, and the function of each as the attribute `call`."""
    p = commands.add_parser("predict", help="classify the digits in images")
    p.usage = "%(prog)s (RUN | --exported FILE) IMAGE [IMAGE ...]"
    p.add_argument("--exported", type=Path, metavar="FILE", help="the model, instead of a run")
    p.add_argument("paths", type=Path, nargs="+", metavar="IMAGE", help="PNG or IDX")
    p.set_defaults(call=_predict)

    x = commands.add_parser("export", help="write a run's model to one file that runs without it")
    x.add_argument("run", type=Path, metavar="RUN")
    x.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="what to write (default: RUN/model.stablehlo)",
    )
    x.set_defaults(call=_export)

    s = commands.add_parser("serve", help="classify digits over HTTP")
    s.add_argument("model", type=Path, metavar="RUN|FILE", help="a run, or a file from export")
    s.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    s.add_argument(
        "--port",
        type=whole(0, 65535),
        default=8000,
        help="0: any free port (default: %(default)s)",
    )
    s.add_argument(
        "--batch-sizes",
        type=whole(1, 1024),
        nargs="+",
        metavar="N",
        help="compiled at start, always with 1; only 1: no batching (default: 1 2 4 8 16 32)",
    )
    s.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for a request's headers, and again for its body and answer (default: %(default)s)",
    )
    s.set_defaults(call=_serve)


@contextlib.contextmanager
def _extra(command: str) -> Iterator[None]:
    """Reports a missing package in one line."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise UserError(
            f"{missing.name} is not installed, which {command} needs; pip install -e '.[serve]'"
        ) from missing


def _run(folder: Path) -> "Run":
    from examples.mnist.runs import Run

    return Run.open(folder)


def _predict(arguments: argparse.Namespace) -> int:
    if arguments.exported:
        with _extra("--exported"):
            classifier, images = exported.load(arguments.exported), arguments.paths
        labels, log_probabilities = classifier.labels, classifier.log_probabilities
    else:
        folder, *images = arguments.paths
        labels, log_probabilities = _from_run(folder)
        if not images:
            raise UserError(
                "no image was named; write: predict RUN IMAGE, or --exported FILE IMAGE"
            )
    for path in images:
        digits = pictures.read_digits(path)
        found = np.exp(log_probabilities(digits))
        if np.isnan(found).any():
            raise UserError(
                f"the model predicts NaN for {path}; train it again with a lower --learning-rate"
            )
        for i, p in enumerate(found):
            name = f"{path}[{i}]" if len(digits) > 1 else f"{path}"
            print(f"{name}: {labels[p.argmax()]} ({p.max():.1%})")
    return 0


def _from_run(folder: Path) -> tuple[list[str], Any]:
    import functools

    from examples.mnist import evaluate
    from examples.mnist.models import LABELS
    from examples.mnist.train import trained

    graph, params = trained(_run(folder))
    return LABELS, functools.partial(evaluate.log_probabilities, graph, params)


def _export(arguments: argparse.Namespace) -> int:
    from examples.mnist import export

    file = arguments.file or arguments.run / "model.stablehlo"
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file in it")
    with _extra("export"):
        size = export.write(export.of_run(_run(arguments.run)), file)
    print(f"{file}: {size:,} bytes, for {' and '.join(export.PLATFORMS)}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    with _extra("serve"):
        from examples.mnist.serve import server

        if arguments.model.is_dir():
            from examples.mnist import export

            classifier = export.of_run(_run(arguments.model))
        else:
            classifier = exported.load(arguments.model)
    sizes = arguments.batch_sizes or server.BATCH_SIZES
    server.serve(classifier, arguments.host, arguments.port, sizes, arguments.timeout)
    return 0
