"""Malformed files are read or rejected with the reader's own error."""

import contextlib
import dataclasses
import gzip
import json
import shutil
import struct
import tracemalloc
import zlib

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.mnist import data
from examples.mnist.runs import Run, RunError
from tests.examples import malformed as fuzz

pytestmark = pytest.mark.slow

quick = settings(max_examples=200, deadline=None, database=None)
fields = st.one_of(st.sampled_from(fuzz.HEADERS), st.integers(0, 2**32 - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


class Saved:
    """A run with two checkpoints, a state of their structure, and their bits.

    Not a tuple, because Hypothesis would print all of it.
    """

    def __init__(self, folder):
        self.folder = folder
        self.like, self.bits = fuzz.two_checkpoints(folder)


@pytest.fixture(scope="module")
def saved(folder):
    with jax.numpy_dtype_promotion("standard"):
        return Saved(folder / "good")


@st.composite
def files(draw):
    """A plausible header, a body that may not match it, optionally compressed and then damaged."""
    content = struct.pack(">4I", *(draw(fields) for _ in range(4)))[: draw(st.integers(0, 16))]
    content += draw(st.one_of(st.binary(max_size=40), st.sampled_from([bytes(784), bytes(1568)])))
    if draw(st.booleans()):
        content = gzip.compress(content, 1, mtime=0)
        at = draw(st.integers(0, len(content)))
        content = (
            content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 4)) :]
        )
    return content


@quick
@given(content=files(), end=st.sampled_from(["", ".gz"]))
def test_any_idx_file_is_digits_or_a_data_error_in_little_memory(folder, content, end):
    path = folder / f"any{end}"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        fuzz.read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@settings(max_examples=30, deadline=None, database=None)
@given(
    labels=st.booleans(),
    count=st.integers(0, 3) | fields,
    megabytes=st.integers(1, 30),
    members=st.integers(1, 3),
)
def test_a_bomb_is_unpacked_no_further_than_its_header_says(
    folder, labels, count, megabytes, members
):
    header = struct.pack(">2I", 2049, count) if labels else struct.pack(">4I", 2051, count, 28, 28)
    packer = zlib.compressobj(1, wbits=31)
    packed = packer.compress(header)
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    path = folder / "bomb.gz"
    path.write_bytes(packed * members)
    size = count * (1 if labels else 784)
    tracemalloc.start()
    try:
        with contextlib.suppress(data.DataError):
            (data.read_labels if labels else data.read_images)(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    claimed = size if 1 <= count <= data.MAX_COUNT else 0
    # The smaller of actual and declared size, with room for a growing buffer.
    assert peak < (4 << 20) + 2.5 * min(claimed, members * (megabytes + 1) << 20)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = ("model", "optimizer", "schedule", "epochs", "learning_rate", "data_dir", "seed", "more")
texts = st.one_of(
    st.binary(max_size=50),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(NAMES), values).map(lambda value: json.dumps(value).encode()),
    st.integers(1, 3_000).map(lambda depth: b"[" * depth),
    st.integers(4_000, 5_000).map(lambda digits: b'{"seed": ' + b"9" * digits + b"}"),
)


@settings(quick, max_examples=100)
@given(content=texts)
def test_any_settings_are_a_run_or_a_run_error(saved, content):
    path = saved.folder / "config.json"
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        run = Run.open(saved.folder)
        # An accepted model can be built; the smallest stands for all of them.
        fuzz.build(dataclasses.replace(run.config, model="softmax"), steps=1)
        run.close()
    except RunError as error:
        assert str(path) in str(error)
    finally:
        path.write_bytes(good)


@quick
@given(first=texts, second=texts)
def test_any_metrics_are_a_run_error(saved, first, second):
    (saved.folder / "metrics.jsonl").write_bytes(first + b"\n" + second)
    run = Run.open(saved.folder)
    with pytest.raises(RunError, match="no metrics of epoch 1"):
        run.metrics()
    run.close()


@settings(max_examples=40, deadline=None, database=None)
@given(
    file=st.integers(0, 100),
    at=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=3),
    drop=st.integers(0, 3),
)
def test_a_checkpoint_with_other_bytes_is_never_restored(saved, folder, file, at, put, drop):
    run = folder / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(saved.folder, run)
    (run / "metrics.jsonl").write_bytes(METRICS)
    checkpoint = run / "checkpoints" / "2"
    covered = [checkpoint / "b2sums", *(checkpoint / "default").rglob("*")]
    covered = sorted(path for path in covered if path.is_file())
    path = covered[file % len(covered)]
    content = path.read_bytes()
    start = int(at * len(content))
    changed = content[:start] + put + content[start + drop :]
    path.write_bytes(changed)
    expected = 2 if changed == content else 1
    assert fuzz.reopened(run, saved.like) == (expected, saved.bits[expected - 1])


METRICS = b"".join(
    json.dumps(dict.fromkeys(sorted(fuzz.QUANTITIES), 1.0) | {"epoch": epoch}).encode() + b"\n"
    for epoch in (1, 2)
)
