"""Programs that use the library: how to use it, studies with figures, and an application."""

import os
import signal
import sys

advice = ""
"""What a program says after "interrupted"."""


def _interrupted(number: int, frame: object) -> None:
    # Files are replaced whole, so a program can end at any point. It does not raise
    # KeyboardInterrupt: that is lost in a callback of the garbage collector, and ends in a
    # segmentation fault while XLA compiles on another thread.
    os.write(2, f"interrupted{advice}\n".encode())
    os._exit(130)


def finished() -> None:
    """Everything is written: while Python ends, ctrl-C has no effect."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# During imports too, which take seconds. Until `python -m` has found the program, "-m" is in
# sys.argv; other programs that import this package handle interrupts themselves.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
