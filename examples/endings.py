"""The messages of a command that cannot continue."""

import jax


def memory_ended(error: BaseException) -> str | None:
    """One line for an exhausted memory of the host or of the device; None for other errors."""
    on_device = isinstance(error, jax.errors.JaxRuntimeError)
    if not (isinstance(error, MemoryError) or (on_device and "RESOURCE_EXHAUSTED" in str(error))):
        return None
    reason = " ".join(str(error).split())[:200]
    return f"out of memory{f' ({reason})' if reason else ''}"
