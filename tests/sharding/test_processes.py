"""Two processes train and save; 1, 2 and 4 processes continue on other meshes, bit for bit."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.catalogue.processes import Run, resume, trained
from tests.catalogue.scripts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.bits]


def run_processes(count, devices, folder, mesh):
    with socket.socket() as reserved:
        # Nobody else gets this port, and gRPC may still listen on it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.catalogue.processes"]
        started = [
            subprocess.Popen(
                [*command, *map(str, (i, count, devices, address, folder, mesh))],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        errors = [process.communicate(timeout=300)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint of two processes with two devices each, and how they continued."""
    folder = tmp_path_factory.mktemp("run")
    run_processes(2, 2, folder, "4")
    return folder


def arrays(file):
    with np.load(f"{file}.npz") as saved:
        return [saved[name] for name in saved.files]


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(1, 8, "1"), (1, 8, "4"), (1, 8, "2x4"), (2, 4, "8"), (4, 1, "2x2")],
)
def test_a_run_of_two_processes_continues_bit_for_bit(count, devices, mesh, folder):
    if count == 1:
        resume(mesh, folder)
    else:
        run_processes(count, devices, folder, mesh)
    for name in ("saved", "last"):
        own, expected = arrays(folder / f"{mesh}-{name}"), arrays(folder / name)
        for x, y in zip(own, expected, strict=True):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def test_two_processes_take_the_steps_of_one(folder):
    [two], one = arrays(folder / "trained"), np.asarray(trained(Run("4").mesh)["w"])
    # Sums over processes are rounded in another order, and may change a code: 1 % of a step.
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert np.abs(two - one).mean() < 1e-7
