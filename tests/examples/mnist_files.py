"""A small MNIST, and damaged copies of its files, shared by the data tests."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from examples.mnist import data

DIGITS = Path(data.__file__).parent / "digits"
SIDES = struct.pack(">2I", 28, 28)


def images_bytes(count: int, claimed: int | None = None, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, count * 784, np.uint8)
    header = struct.pack(">2I", 2051, count if claimed is None else claimed)
    return header + SIDES + pixels.tobytes()


def labels_bytes(labels: list[int], claimed: int | None = None) -> bytes:
    return struct.pack(">2I", 2049, len(labels) if claimed is None else claimed) + bytes(labels)


def corrupt(blob: bytes, position: int) -> bytes:
    return blob[:position] + bytes([blob[position] ^ 0xFF]) + blob[position + 1 :]


# A small MNIST: three training digits and two test digits.
SMALL = {
    "train-images-idx3-ubyte": images_bytes(3),
    "train-labels-idx1-ubyte": labels_bytes([5, 0, 4]),
    "t10k-images-idx3-ubyte": images_bytes(2, seed=1),
    "t10k-labels-idx1-ubyte": labels_bytes([7, 2]),
}
CHECKSUMS = {name: hashlib.sha256(raw).hexdigest() for name, raw in SMALL.items()}
SERVED = {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in SMALL.items()}


def one_line(error: pytest.ExceptionInfo[data.DataError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in (*parts, "; expected "):
        assert part in message


def fill(directory: Path, packed: bool = True) -> None:
    for name, raw in SMALL.items():
        path = directory / (f"{name}.gz" if packed else name)
        path.write_bytes(SERVED[f"{name}.gz"] if packed else raw)
