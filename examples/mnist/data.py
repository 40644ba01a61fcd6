"""MNIST from IDX files to batches: read, shuffle.

An IDX file is a header (a magic number, the count, the further sides: four bytes each, big-endian)
and one byte per element. All claims of a file are checked before they are used.
"""

import contextlib
import dataclasses
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import jax
import jax.numpy as jnp
import numpy as np

from examples.shared.command_line import UserError

SIDE = 28  # pixels
MAX_COUNT = 1_000_000  # digits in one file; MNIST has 60,000
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
NAMES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _error(where: object, found: str, expected: str, advice: str = "fetch it again") -> UserError:
    return UserError(" ".join(f"{where} {found}; expected {expected}; {advice}".splitlines()))


@dataclasses.dataclass(frozen=True)
class Digits:
    """Two sets: images uint8 [count, 28, 28], 0 to 255; matching labels uint8 [count], 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def _read(stream: BinaryIO, limit: int) -> bytearray:
    """At most `limit` bytes, read in pieces because `read(limit)` would allocate all of them."""
    body = bytearray()
    while piece := stream.read(min(1 << 20, limit - len(body))):
        body += piece
    return body


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a file, plain or .gz; errors inside become UserErrors."""
    try:
        # Opening a pipe would wait for its writer for ever, so only regular files are opened.
        if not path.is_file():
            raise _error(path, "is not a file" if path.exists() else "is missing", "an IDX file")
        # By name, not by content: with a broken first byte the error still names the problem.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise _error(path, f"cannot be read ({error})", "an IDX file, plain or .gz") from error


def _read_idx(path: Path, magic: int, sides: tuple[int, ...]) -> np.ndarray:
    """Elements of an IDX file, uint8 [count, *sides]."""
    header_size = 4 * (2 + len(sides))
    with _opened(path) as stream:
        header = stream.read(header_size)
        if len(header) < header_size:
            raise _error(path, f"ends after {len(header)} bytes", f"a header of {header_size}")
        found_magic, count, *found_sides = struct.unpack(f">{header_size // 4}I", header)
        if found_magic != magic:
            raise _error(path, f"has the magic number {found_magic}", f"{magic}, of its name")
        if tuple(found_sides) != sides:
            raise _error(path, f"holds images of {found_sides} pixels", f"{list(sides)}, as MNIST")
        if not 1 <= count <= MAX_COUNT:
            raise _error(path, f"claims to hold {count} digits", f"1 to {MAX_COUNT}")
        size = count * math.prod(sides)
        # Reading one byte more detects trailing bytes, and makes gzip verify its checksum.
        body = _read(stream, size + 1)
    if len(body) != size:
        found = "more bytes" if len(body) > size else f"only {len(body)} bytes"
        raise _error(path, f"holds {found} after its header", f"{size} for {count} digits")
    return np.frombuffer(body, np.uint8).reshape(count, *sides)


def read_images(path: Path) -> np.ndarray:
    """Images of an IDX file, plain or .gz: uint8 [count, 28, 28], 0 (paper) to 255 (ink).

    Raises:
      UserError: if the file is missing, broken, or contradicts its header.
    """
    return _read_idx(path, 2051, (SIDE, SIDE))


def read_labels(path: Path) -> np.ndarray:
    """Labels of an IDX file: uint8 [count], 0 to 9; raises as `read_images`, and for labels > 9."""
    labels = _read_idx(path, 2049, ())
    if labels.max() > 9:
        raise _error(path, f"holds the label {labels.max()}", "0 to 9", "use a set of digits")
    return labels


def _find(directory: Path, name: str) -> Path | None:
    """The file of that name, else its .gz; Path.is_file would raise without permission."""
    paths = (directory / name, directory / f"{name}.gz")
    return next((path for path in paths if os.path.isfile(path)), None)


def load(directory: Path | None = None) -> Digits:
    """Digits of a directory with the four files of MNIST, plain or .gz (plain files come first).

    None is the 8,000 + 2,000 digits included in this example.

    Raises:
      UserError: if a file is missing or broken, or images and labels differ in number.
    """
    directory = Path(__file__).parent / "digits" if directory is None else directory
    found = {name: _find(directory, name) for name in NAMES}
    if missing := ", ".join(name for name, path in found.items() if path is None):
        raise _error(directory, f"lacks {missing}", "all, plain or .gz", "fetch them")
    paths = [path for path in found.values() if path is not None]
    arrays = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_images(images_path), read_labels(labels_path)
        if len(images) != len(labels):
            expected = f"{len(images)}, as many as images in {images_path.name}"
            raise _error(labels_path, f"holds {len(labels)} labels", expected, "fetch both again")
        arrays += [images, labels]
    return Digits(*arrays)


def batches(key: jax.Array, count: int, batch_size: int) -> jax.Array:
    """The order of one epoch: int32 [steps, batch_size], a row of distinct indices for each batch.

    A last batch that is not full is dropped: all batches have the one compiled shape.

    Raises:
      UserError: if not 1 ≤ batch_size ≤ count.
    """
    if not 1 <= batch_size <= count:
        raise _error("batch_size", f"is {batch_size}", f"1 to {count}, the digits", "change it")
    order = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
    return order[: count // batch_size * batch_size].reshape(-1, batch_size)
