"""Programs that show the library at work; each folder is one of them."""

import _thread
import os
import signal
import sys
import threading


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def raise_interrupts() -> None:
    """From here on ctrl-C is a KeyboardInterrupt: the program says itself how it goes on."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _raise_again


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    # Python ignores what a callback of its garbage collector raises, and JAX has such a callback:
    # a ctrl-C that comes in it would be lost. The callback is over by the time the timer ends.
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


def interrupted() -> int:
    """The exit status of a program that a KeyboardInterrupt ended."""
    # Where the interrupt went through `exec` of a string, as in the making of a dataclass, Python
    # notes it as not handled, and dies of SIGINT at the end of `python -m`. Another `exec` takes
    # the note back.
    exec("")
    return 130


# Imports take seconds. A KeyboardInterrupt in them is a traceback, or whatever the module that it
# comes to makes of it: NumPy an ImportError. Nothing is lost yet, so the process just ends.
# `python -m` has "-m" here until it has found the program; other programs see to it themselves.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
