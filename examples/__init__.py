"""Programs that use the library; each folder is one of them."""

import _thread
import os
import signal
import sys
import threading


def _interrupted(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def raise_interrupts() -> None:
    """From here on ctrl-C raises KeyboardInterrupt, so the program can say how to resume."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _raise_again


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    # Python ignores exceptions in callbacks of its garbage collector, and JAX has such a callback:
    # a ctrl-C in it would be lost. The callback has returned by the time the timer fires.
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


def _interrupt_main() -> None:
    # A signal also wakes a thread that waits for a lock; `interrupt_main` does not.
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def interrupted() -> int:
    """The exit status of a program that a KeyboardInterrupt ended."""
    # If the interrupt passed through `exec` of a string, as when a dataclass is created, Python
    # marks it as unhandled and dies of SIGINT at the end of `python -m`. Another `exec` clears
    # the mark.
    exec("")
    return 130


# Imports take seconds. A KeyboardInterrupt during them prints a traceback, or becomes another
# error: in NumPy an ImportError. Nothing is lost yet, so the process just exits. Until `python -m`
# has found the program, "-m" is in sys.argv; other programs handle interrupts themselves.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
