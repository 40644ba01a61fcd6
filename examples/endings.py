"""What a command says when it cannot go on."""

import jax


def memory_ended(error: BaseException) -> str | None:
    """That memory ended, of the host or of the device, in one line; None if it did not."""
    on_device = isinstance(error, jax.errors.JaxRuntimeError)
    if not (isinstance(error, MemoryError) or (on_device and "RESOURCE_EXHAUSTED" in str(error))):
        return None
    reason = " ".join(str(error).split())[:200]
    return f"memory ended{f' ({reason})' if reason else ''}"
