"""Settings that make JAX lower, and XLA:CPU compile, faster in tests."""

import threading
from typing import Any

import jax
from jax._src.interpreters import mlir  # It has no public name.

# For tests that do not compare bits: XLA:CPU's former emitters, which jax 0.11 removed. Some of
# their results are rounded differently. A small step compiles in 0.3 s with the new emitters, in
# 0.1 s with these, and in 0.04 s with these and without LLVM's optimizations. The new emitters gain
# almost nothing without them.
FASTER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ >= (0, 11):
    FASTER = ""

# For separate processes. These have one device: each of the eight in conftest.py needs threads.
IN_A_HURRY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    "XLA_FLAGS": FASTER,
}

_make_context = mlir.make_ir_context
_contexts = threading.local()


def _context() -> Any:
    if not hasattr(_contexts, "its"):
        _contexts.its = _make_context()
    return _contexts.its


def share_contexts() -> None:
    """Lowers programs in one context per thread, until the next call.

    JAX loads all of MLIR's dialects into a new context for each program. That takes 2.7 ms, half of
    the time of lowering a small program, and a tenth of the time of all tests.
    """
    global _contexts
    _contexts = threading.local()  # A context keeps the constants of its programs.
    mlir.make_ir_context = _context
