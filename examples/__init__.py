"""Programs that show the library at work; each folder is one of them."""

import os
import signal
import sys


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def raise_interrupts() -> None:
    """From here on ctrl-C is a KeyboardInterrupt: the program says itself how it goes on."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Imports take seconds. A KeyboardInterrupt in them is a traceback, or whatever the module that it
# comes to makes of it: NumPy an ImportError. Nothing is lost yet, so the process just ends.
# `python -m` has "-m" here until it has found the program; other programs see to it themselves.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
