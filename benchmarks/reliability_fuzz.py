"""Malformed inputs: bytes for the IDX reader, damage to a checkpoint."""

import collections
import gzip
import random
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.mnist import data
from examples.mnist.runs import QUANTITIES, Config, Run, RunError
from examples.mnist.train import build

TEXTS = ("config.json", "metrics.jsonl")
HEADERS = (0, 1, 2, 10, 27, 28, 29, 2049, 2051, 10**6, 10**6 + 1, 2**31 - 1, 2**31, 2**32 - 1)


def idx(rng: random.Random) -> tuple[bytes, str]:
    """Bytes similar to an IDX file, and the end of the file's name."""
    count = rng.randint(0, 3)
    if rng.random() < 0.5:
        content = struct.pack(">4I", 2051, count, 28, 28) + rng.randbytes(count * 784)
    else:
        content = struct.pack(">2I", 2049, count) + bytes(rng.randrange(11) for _ in range(count))
    if rng.random() < 0.3:
        field = 4 * rng.randrange(4)
        content = content[:field] + struct.pack(">I", rng.choice(HEADERS)) + content[field + 4 :]
    content = damaged(content, rng)
    packed = rng.random() < 0.5
    if packed:
        if rng.random() < 0.05:
            content += bytes(1 << 22)  # A bomb: 4 KB that unpack to a thousand times as much.
        content = gzip.compress(content, 1, mtime=0)
        content = damaged(content, rng)
    return content, ".gz" if packed != (rng.random() < 0.05) else ""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Unchanged, or with a byte changed, a piece removed or inserted, or the end cut off."""
    at, how = rng.randint(0, len(content)), rng.randrange(5)
    if how == 1 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if how == 2:
        return content[:at] + content[at + rng.randint(1, 9) :]
    if how == 3:
        return content[:at] + rng.randbytes(rng.randint(1, 9)) + content[at:]
    return content[:at] if how == 4 else content


def read_idx(path: Path) -> bool:
    """Whether both readers return digits or raise a DataError; other exceptions propagate.

    True if one of them read digits.
    """
    read = False
    for reader, sides in ((data.read_images, (28, 28)), (data.read_labels, ())):
        try:
            array = reader(path)
        except data.DataError:
            continue
        if array.dtype != np.uint8 or len(array) < 1 or array.shape[1:] != sides:
            raise AssertionError(f"{path} was read as {array.dtype} {array.shape}")
        read = True
    return read


def fuzz_idx(folder: Path, times: int, seed: int) -> str:
    """Reads that many inputs; returns the outcomes. Raises at any but the right error."""
    rng, digits, start = random.Random(seed), 0, time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(times):
        content, end = idx(rng)
        path = folder / f"input{end}"
        path.write_bytes(content)
        try:
            digits += read_idx(path)
        except Exception as error:
            raise AssertionError(f"input {i} of seed {seed}: {content[:99]!r}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.perf_counter() - start
    return (
        f"{digits:,} were digits, {times - digits:,} a DataError, no other exception;"
        f" {seconds:.0f} s, peak memory +{grown:.0f} MiB"
    )


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file in a folder; returns the kind of damage and the file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # Half of the time all files are equally likely, half of the time all bytes.
    sizes = [path.stat().st_size for path in files]
    path = rng.choices(files, None if rng.random() < 0.5 else sizes)[0]
    content, how = path.read_bytes(), rng.choice(["a bit", "cut", "zeroed", "deleted"])
    if how == "a bit" and content:
        at = rng.randrange(len(content))
        changed = bytes([content[at] ^ 1 << rng.randrange(8)])
        path.write_bytes(content[:at] + changed + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[: rng.randrange(max(1, len(content)))])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    else:
        path.unlink()
    return f"{how}: {path.relative_to(folder)}"


def leaves(state: Any) -> list[bytes]:
    """The bits of a state."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def two_checkpoints(folder: Path, **settings: Any) -> tuple[Any, list[list[bytes]]]:
    """A fake run of two epochs: a state like those it saved, and their bits."""
    Run.prepare(folder, Config(model="softmax", **settings))
    run = Run.open(folder)
    _, like, _, _ = build(run.config, steps=1)
    bits = []
    for epoch in (1, 2):
        key = jax.random.key(epoch)

        def draw(x: jax.Array, key: jax.Array = key) -> jax.Array:
            return (100 * jax.random.uniform(key, x.shape)).astype(x.dtype)

        state = jax.tree.map(draw, like)
        run.write_metrics([dict.fromkeys(QUANTITIES, 1.0) | {"epoch": e + 1} for e in range(epoch)])
        run.save(epoch, state)
        bits.append(leaves(state))
    run.close()
    return like, bits


def reopened(folder: Path, like: Any) -> tuple[int, list[bytes]]:
    """The epochs and the bits that a run resumes from."""
    run = Run.open(folder)
    try:
        epochs = run.epochs_saved
        run.metrics()
        return epochs, leaves(run.restore(like))
    finally:
        run.close()


def fuzz_checkpoints(folder: Path, times: int, seed: int) -> str:
    """Damages a run's last checkpoint that many times; returns what was restored instead."""
    rng, found = random.Random(seed), collections.Counter()
    like, bits = two_checkpoints(folder / "good")
    start = time.perf_counter()
    for i in range(times):
        run = folder / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "good", run)
        how = damage(run / "checkpoints" / "2", rng)
        epochs, restored = reopened(run, like)
        if epochs not in (1, 2) or restored != bits[epochs - 1]:
            raise AssertionError(f"damage {i} of seed {seed} ({how}) went unnoticed")
        found[epochs] += 1
    return (
        f"{found[1]} fell back to the checkpoint before, {found[2]} were of files without values;"
        f" {time.perf_counter() - start:.0f} s"
    )


def fuzz_texts(folder: Path, times: int, seed: int) -> str:
    """Damages config.json and metrics.jsonl; each is read, or raises a RunError."""
    rng, refused = random.Random(seed), 0
    two_checkpoints(folder / "texts")
    good = {name: (folder / "texts" / name).read_bytes() for name in TEXTS}
    for _ in range(times):
        for name in TEXTS:
            content = damaged(good[name], rng)
            (folder / "texts" / name).write_bytes(content)
        try:
            run = Run.open(folder / "texts")
        except RunError:
            refused += 1
            continue
        try:
            run.metrics()
        except RunError:
            refused += 1
        finally:
            run.close()
    return f"{refused} were a RunError, {times - refused} still settings and metrics"
