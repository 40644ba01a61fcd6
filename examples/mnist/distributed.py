"""Several processes that train one model: their ids, the placement of arrays, their messages.

`--processes 2` alone starts them on this machine. On a cluster each is started on its host, with
`--processes`, `--process-id` and `--coordinator HOST:PORT`, the address of process 0; or with
`--processes auto` under SLURM, on GKE and on TPU pods, where JAX detects all three.
"""

import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adam_jax import sharding

DEVICES = 4  # of each process started on this machine, if it has only CPUs
HEARTBEAT = 10  # seconds without a heartbeat after which a process counts as dead
# In the environment of a process that trains: two pipes to its supervisor. The first ends when the
# supervisor does; the second takes error messages.
WORKER = "EXAMPLES_MNIST_WATCHED_BY"


class ProcessError(RuntimeError):
    """One line for the user about processes that did not start, or died."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The placement of the arrays of a training run.

    Attributes:
      mesh: all devices of all processes, along the axis "data"; None for a single device.
    """

    mesh: Mesh | None = None

    @classmethod
    def of_all_processes(cls) -> "Devices":
        """The placement, after each process has joined."""
        return cls(jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)))

    @property
    def batch(self) -> NamedSharding | None:
        """The sharding of a batch: each device has a part of the digits."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec("data"))

    def copied(self, tree: Any) -> Any:
        """Replicates the arrays on every device."""
        if self.mesh is None:
            return jax.device_put(tree)
        sharding = NamedSharding(self.mesh, PartitionSpec())

        def copy(x: Any) -> jax.Array:
            if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(copy(jax.random.key_data(x)))
            return jax.device_put(np.asarray(x), sharding)

        return jax.tree.map(copy, tree)

    def own(self, tree: Any) -> Any:
        """This process's own copy of replicated arrays."""
        return tree if self.mesh is None else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer with its state sharded over the devices (ZeRO-1)."""
        return tx if self.mesh is None else sharding.shard_state(tx, self.mesh)

    def check(self, batch_size: int) -> None:
        """Raises ProcessError if a batch cannot be split evenly."""
        count = 1 if self.mesh is None else self.mesh.size
        if batch_size % count:
            raise ProcessError(
                f"--batch-size must be a multiple of the {count} devices, got {batch_size};"
                f" write --batch-size {-(-batch_size // count) * count}"
            )


ONE = Devices()


def speaks() -> bool:
    """Whether this process writes files and prints; only the first does."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def join(processes: int | str, process_id: int | None, coordinator: str | None) -> None:
    """Makes this process one of several.

    Raises:
      ProcessError: the others cannot be reached.
    """
    threading.Thread(target=_end_with_the_watcher, daemon=True).start()
    # Gloo prints a line to standard output for each connection; this keeps Python's own output.
    ours = os.dup(1)
    sys.stdout = open(ours, "w", buffering=1)  # noqa: SIM115
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    told: dict[str, Any] = {}
    if processes != "auto":
        told = {"num_processes": processes, "process_id": process_id}
        told["coordinator_address"] = coordinator
    try:
        jax.distributed.initialize(
            **told,
            initialization_timeout=60,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ProcessError(
            f"the processes did not find each other ({reason}); start all of them, with the"
            f" --coordinator of process 0"
        ) from error


def is_worker() -> bool:
    """Whether this process trains, and does not supervise the ones that do."""
    return WORKER in os.environ


def _pipes() -> tuple[int, int]:
    alive, wrong = map(int, os.environ[WORKER].split())
    return alive, wrong


def _end_with_the_watcher() -> None:
    os.read(_pipes()[0], 1)  # Returns at the end of the pipe.
    os._exit(1)


def report(text: str) -> None:
    """Reports an error on stderr; if several processes report one, only the first is printed."""
    if is_worker():
        os.write(_pipes()[1], text.encode()[-4000:] + b"\0")  # Writes of up to 4096 are atomic.
    else:
        print(text, file=sys.stderr)


def launch(processes: int | str, process_id: int | None, command: Sequence[str]) -> int:
    """Runs a command in processes that train, and supervises them; returns the exit status.

    When one fails all are ended, because the others would wait for it. Processes on other machines
    end after some seconds without a heartbeat, and their own supervisors report it.

    Args:
      processes: the number of processes; "auto" if the cluster knows it.
      process_id: the only one to start here; None for all of them, unless the cluster knows.
      command: Python's arguments for a process; adds `--process-id` and `--coordinator` for all.
    """
    commands, environment = [list(command)], {**os.environ, "PYTHONUNBUFFERED": "1"}
    if process_id is None and processes != "auto":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            told = ["--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--process-id"]
        commands = [[*command, *told, str(i)] for i in range(int(processes))]
        environment.setdefault("JAX_NUM_CPU_DEVICES", str(DEVICES))
    # The other end of the first pipe closes when this process ends for any reason.
    alive, _ = os.pipe()
    said, wrong = os.pipe()
    environment[WORKER] = f"{alive} {wrong}"
    # A terminal sends ctrl-C to all processes. Only this one handles it, and ends the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # They inherit it.
    running = [
        subprocess.Popen([sys.executable, *c], env=environment, pass_fds=[alive, wrong])
        for c in commands
    ]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _watched(running, process_id or 0, said)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _watched(running: list[subprocess.Popen[bytes]], first: int, said: int) -> int:
    while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
        if select.select([said], [], [], 0.05)[0]:
            break
    failed = [(i, p.returncode) for i, p in enumerate(running) if p.poll()]
    texts = os.read(said, 1 << 16).split(b"\0") if select.select([said], [], [], 0)[0] else []
    # A killed process reports nothing, and the others only that they lost it.
    killed = [(i, status) for i, status in failed if status == -signal.SIGKILL]
    if texts and not killed:
        print(texts[0].decode(errors="replace"), file=sys.stderr)
    elif failed:
        i, status = (killed or failed)[0]
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        print(
            f"error: process {first + i} ended ({ended}) and training stopped; start all processes"
            f" again with --resume to continue from the last checkpoint",
            file=sys.stderr,
        )
    return int(bool(texts or failed))
