"""A lock that admits one program to a folder; the system releases it if the program dies.

The lock is flock's. Over NFS it also holds between machines, unless the folder is mounted with
`nolock` or `local_lock`. On a file system without locks the program warns on stderr and continues.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from examples.mnist.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder and holds FOLDER/lock, which names the holder; readers need no lock.

    Raises:
      UserError: another program holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    # NFS locks a file for writing only for users who may write to it.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _taken(file, path):
            holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is in use by {holder};"
                f" wait until it ends, end it, or choose another --out"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        # If the disk is full, the program itself reports it in more detail.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.write(
                file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode()
            )
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _taken(file: int, path: Path) -> bool:
    """Locks the file; returns whether another process has it."""
    try:
        import fcntl  # Not on Windows.

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError) as error:
        print(f"{path} cannot be locked ({error}); start nothing else there", file=sys.stderr)
    return False
