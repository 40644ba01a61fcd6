"""Files that are replaced whole: a kill leaves the old or the new content."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.shared.command_line import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def save(path: Path, tree: Any) -> None:
    """Writes the arrays of a tree as .npz, which has a CRC-32 of each array."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, *map(np.asarray, jax.tree.leaves(tree)))
    partial.replace(path)


def load(path: Path, like: Any) -> Any:
    """The tree that was saved, with the structure, shapes and dtypes of `like`.

    Raises:
      UserError: the file is missing, damaged, or of another tree.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
        # NumPy reads bfloat16 as raw bytes.
        found = [a.view(leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)]
        if [a.shape for a in found] != [leaf.shape for leaf in leaves]:
            raise ValueError("it has arrays of other shapes")
    except Exception as error:  # Damaged bytes can raise anything from KeyError upwards.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({reason})") from error
    return jax.tree.unflatten(structure, map(jax.numpy.asarray, found))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder and admits one program to it; FOLDER/lock names the program.

    The system releases the lock when the program ends. Without locks, as on some network file
    systems, the program warns on stderr and continues.

    Raises:
      UserError: another program holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # NFS locks a file for writing only for users who may write to it.
    with (folder / "lock").open("a+") as file:
        try:
            import fcntl  # Not on Windows.

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(1000).strip() or "another process"
            raise UserError(
                f"{folder} is in use by {holder};"
                f" wait until it ends, end it, or choose another --out"
            ) from None
        except (ImportError, OSError) as error:
            said = f"{folder}/lock cannot be locked ({error}); start nothing else there"
            print(said, file=sys.stderr)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        yield
