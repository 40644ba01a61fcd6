"""Requests per second, latency and memory of the MNIST server, with and without batching.

    python -m benchmarks.serve [--models cnn mlp] [--clients 1 64 200] [--seconds 5] [--fast]

For each model (untrained, which does not affect the time) the real server is started twice, as it
is and with `--batch-sizes 1`. A separate process sends requests to both, in an order drawn anew for
each round. Each client posts the PNG of one digit, waits for the answer, and repeats. All share the
cores of the machine.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from benchmarks.machine import describe
from examples.mnist import data, export
from examples.mnist.models import MODELS
from examples.options import above_0, positive


class WideMLP(nnx.Module):
    """784-4096-4096-10, as in Srivastava et al. 2014 (Dropout, table 2): 20 million weights.

    A single digit reads all 80 MB of them; 32 digits read them once. The models that the example
    trains fit the cache.
    """

    def __init__(self, rngs: nnx.Rngs):
        sizes = [784, 4096, 4096, 10]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]."""
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


SERVED = MODELS | {"wide-mlp": WideMLP}
MODES = {"batches of 1 to 32": [], "one by one": ["--batch-sizes", "1"]}
BASE = "one by one"


@contextlib.contextmanager
def server(model: Path, options: list[str]) -> Iterator[tuple[int, int]]:
    """The process and the port of a server."""
    command = [sys.executable, "-m", "examples.mnist", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("serving"), line
        try:
            yield process.pid, int(line.rpartition(":")[2])
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak_megabytes(pid: int) -> float:
    """Peak resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1024


def request() -> bytes:
    """The PNG of a digit, to post."""
    picture = io.BytesIO()
    Image.fromarray(data.load().test_images[0]).save(picture, "PNG")
    length = len(picture.getvalue())
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + picture.getvalue()


def measure(port: int, clients: int, duration: float) -> list[float]:
    """Seconds of each request, for that many clients and seconds, from a separate process."""
    command = [sys.executable, "-m", "benchmarks.serve.load", *map(str, (port, clients, duration))]
    done = subprocess.run(command, input=request(), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def rows(folder: Path, model: str, clients: list[int], duration: float, rounds: int) -> None:
    """Prints the rows of one model."""
    file = folder / model
    export.write(export.classifier(model, *nnx.split(SERVED[model](nnx.Rngs(0)))), file)
    with contextlib.ExitStack() as stack:
        servers = {m: stack.enter_context(server(file, options)) for m, options in MODES.items()}
        for count in clients:
            found: dict[str, list[tuple[float, ...]]] = {mode: [] for mode in MODES}
            for turn in range(rounds):
                for mode in random.Random(turn).sample(list(MODES), len(MODES)):
                    pid, port = servers[mode]
                    measure(port, count, 0.5)  # Warms up again.
                    before = cpu_seconds(pid)
                    seconds = measure(port, count, duration)
                    cpu = 1000 * (cpu_seconds(pid) - before) / len(seconds)
                    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
                    found[mode].append((len(seconds) / duration, p50, p99, cpu))
            base = statistics.median(rate for rate, *_ in found[BASE])
            for mode, values in found.items():
                rate, p50, p99, cpu = (
                    statistics.median(each) for each in zip(*values, strict=True)
                )
                peak = peak_megabytes(servers[mode][0])
                line = f"| {model} | {count} | {mode} | {rate:,.0f} | {rate / base:.2f} | {p50:.1f}"
                print(f"{line} | {p99:.1f} | {cpu:.2f} | {peak:.0f} |", flush=True)


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--models", nargs="+", choices=SERVED, default=["cnn", "mlp", "wide-mlp"]
    )
    arguments.add_argument("--clients", nargs="+", type=positive, default=[1, 64, 200])
    arguments.add_argument("--seconds", type=above_0, default=5.0, help="of each (%(default)s)")
    arguments.add_argument("--rounds", type=positive, default=5)
    arguments.add_argument("--fast", action="store_true", help="one short round of the MLP")
    a = arguments.parse_args()
    if a.fast:
        a.models, a.clients, a.seconds, a.rounds = ["mlp"], [8], 0.3, 1
    print(describe("jax", "tornado"))
    columns = "model | clients | requests | requests/s | ratio | p50, ms | p99, ms | CPU, ms each"
    print(f"\n| {columns} | peak, MB |\n|{'---|' * 9}")
    with tempfile.TemporaryDirectory() as temporary:
        for model in a.models:
            rows(Path(temporary), model, a.clients, a.seconds, a.rounds)


if __name__ == "__main__":
    main()
