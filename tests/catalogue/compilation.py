"""XLA flags that make XLA:CPU compile faster, for tests that do not compare bits."""

import jax

# XLA:CPU's former emitters, which jax 0.11 removed. Some of their results are rounded differently.
# A small step compiles in 0.3 s with the new emitters, in 0.1 s with these, and in 0.04 s with
# these and without LLVM's optimizations. The new emitters gain almost nothing without them.
FASTER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ >= (0, 11):
    FASTER = ""

# For separate processes. These have one device: each of the eight in conftest.py needs threads.
IN_A_HURRY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    "XLA_FLAGS": FASTER,
}
