"""MNIST's reader, on valid and on damaged files."""

import contextlib
import gzip
import hashlib
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.mnist import data
from examples.shared.command_line import UserError

DIGITS = Path(data.__file__).parent / "digits"


def images_bytes(count: int, claimed: int | None = None, sides=(28, 28)) -> bytes:
    pixels = np.random.default_rng(count).integers(0, 256, count * 784, np.uint8)
    header = struct.pack(">4I", 2051, count if claimed is None else claimed, *sides)
    return header + pixels.tobytes()


def labels_bytes(labels: list[int], claimed: int | None = None) -> bytes:
    return struct.pack(">2I", 2049, len(labels) if claimed is None else claimed) + bytes(labels)


# A small MNIST: three training digits and two test digits.
SMALL = {
    "train-images-idx3-ubyte": images_bytes(3),
    "train-labels-idx1-ubyte": labels_bytes([5, 0, 4]),
    "t10k-images-idx3-ubyte": images_bytes(2),
    "t10k-labels-idx1-ubyte": labels_bytes([7, 2]),
}


@contextlib.contextmanager
def one_line(*parts: str) -> Iterator[None]:
    with pytest.raises(UserError) as error:
        yield
    message = str(error.value)
    assert "\n" not in message
    for part in (*parts, "; expected "):
        assert part in message


def fill(directory: Path, packed: bool = True) -> None:
    for name, raw in SMALL.items():
        path = directory / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)


# Reading.

GOOD_IMAGES = images_bytes(2)
PACKED_IMAGES = gzip.compress(GOOD_IMAGES, mtime=0)
WRONG_SUM = PACKED_IMAGES[:-6] + bytes([PACKED_IMAGES[-6] ^ 0xFF]) + PACKED_IMAGES[-5:]
BOMB = gzip.compress(GOOD_IMAGES + bytes(16 << 20), 1)
IMAGES, LABELS = data.read_images, data.read_labels
# Reader, file name, content, and part of the error message.
BAD = {
    "empty": (IMAGES, "f", b"", "ends after 0 bytes"),
    "half a header": (LABELS, "f", labels_bytes([1])[:7], "ends after 7 bytes"),
    "labels read as images": (IMAGES, "f", labels_bytes([1] * 20), "number 2049"),
    "images read as labels": (LABELS, "f", GOOD_IMAGES, "number 2051"),
    "gz under a plain name": (IMAGES, "f", PACKED_IMAGES, "magic number"),
    "plain under a gz name": (IMAGES, "f.gz", GOOD_IMAGES, "Not a gzipped file"),
    "27 rows": (IMAGES, "f", images_bytes(1, sides=(27, 28)), "[27, 28] pixels"),
    "no images": (IMAGES, "f", images_bytes(0), "claims to hold 0 digits"),
    "count 2^31": (IMAGES, "f", images_bytes(1, 2**31), "hold 2147483648 digits"),
    "one over the bound": (LABELS, "f", labels_bytes([1], 1_000_001), "1000001 digits"),
    "claims a million": (IMAGES, "f", images_bytes(1, 1_000_000), "only 784 bytes"),
    "truncated": (IMAGES, "f", GOOD_IMAGES[:-1], "only 1567 bytes"),
    "trailing byte": (IMAGES, "f", GOOD_IMAGES + b"\0", "more bytes"),
    "16 MiB in a small gz": (IMAGES, "f.gz", BOMB, "more bytes"),
    "label 10": (LABELS, "f", labels_bytes([3, 10]), "holds the label 10"),
    "truncated gz": (IMAGES, "f.gz", PACKED_IMAGES[:-9], "cannot be read"),
    "gz with a wrong sum": (IMAGES, "f.gz", WRONG_SUM, "CRC"),
    "no deflate": (IMAGES, "f.gz", PACKED_IMAGES[:10] + b"\xff" * 200, "cannot be read"),
    "garbage after the gz": (IMAGES, "f.gz", PACKED_IMAGES + b"junk", "cannot be read"),
}


@pytest.mark.parametrize(("read", "name", "content", "part"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_and_only_its_bytes_are_allocated(
    tmp_path, read, name, content, part
):
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with one_line(str(path), part):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["missing", "missing.gz", "folder", "folder.gz", "file/b"])
def test_what_is_not_a_file_is_one_line(tmp_path, name):
    for folder in ("folder", "folder.gz"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_bytes(b"")
    with one_line("is missing" if "folder" not in name else "is not a file"):
        data.read_images(tmp_path / name)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Random bytes, or a valid file with a cut and a flipped byte, plain or compressed."""
    blob = draw(st.sampled_from([GOOD_IMAGES, labels_bytes([1, 2, 3]), PACKED_IMAGES]))
    position = draw(st.integers(0, min(len(blob) - 1, 40)))
    blob = blob[:position] + draw(st.binary(min_size=0, max_size=9)) + blob[position + 1 :]
    blob = blob[: draw(st.integers(0, len(blob)))]
    blob = draw(st.sampled_from([blob, draw(st.binary(max_size=64))]))
    return gzip.compress(blob, 1) if draw(st.booleans()) else blob


@settings(max_examples=300, deadline=None, database=None)
@given(content=damaged(), suffix=st.sampled_from(["", ".gz"]))
def test_any_bytes_are_digits_or_a_user_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    for read, sides in ((data.read_images, (28, 28)), (data.read_labels, ())):
        with contextlib.suppress(UserError):  # Any other exception fails the test.
            array = read(path)
            assert array.dtype == np.uint8
            assert len(array) >= 1 and array.shape[1:] == sides


# Loading.


@pytest.mark.parametrize("packed", [False, True])
def test_load_puts_each_file_in_its_place(tmp_path, packed):
    fill(tmp_path, packed)
    digits = data.load(tmp_path)
    assert digits.train_images.tobytes() == SMALL["train-images-idx3-ubyte"][16:]
    assert digits.test_images.tobytes() == SMALL["t10k-images-idx3-ubyte"][16:]
    assert digits.train_labels.tolist() == [5, 0, 4]
    assert digits.test_labels.tolist() == [7, 2]


def test_load_reads_the_plain_file_before_the_packed_one(tmp_path):
    fill(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels_bytes([8, 8]))
    assert data.load(tmp_path).test_labels.tolist() == [8, 8]


def test_load_names_all_that_is_missing_in_one_error(tmp_path):
    fill(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with one_line("lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte;"):
        data.load(tmp_path)
    with one_line(*SMALL):
        data.load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_load_wants_a_label_for_each_image(tmp_path, part):
    fill(tmp_path)
    (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels_bytes([1] * 7))
    with one_line(f"{part}-labels-idx1-ubyte holds 7 labels", f"{part}-images-idx3-ubyte.gz"):
        data.load(tmp_path)


def test_the_shipped_digits_are_whole():
    digits = data.load()
    assert digits.train_images.shape == (8_000, 28, 28)
    assert digits.test_images.shape == (2_000, 28, 28)
    for labels in (digits.train_labels, digits.test_labels):
        assert set(labels.tolist()) == set(range(10))
    # The mean shows inverted images and pixels that are not bytes (MNIST: 33.3).
    assert 32 < digits.train_images.mean() < 35
    assert digits.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]


@pytest.mark.parametrize("name", data.NAMES)
def test_the_shipped_digits_have_the_checksums_that_their_readme_states(name):
    raw = gzip.decompress((DIGITS / f"{name}.gz").read_bytes())
    rows = [row for row in (DIGITS / "README.md").read_text("utf-8").splitlines() if name in row]
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[2:] == [f"{len(raw):,}", hashlib.sha256(raw).hexdigest()]
