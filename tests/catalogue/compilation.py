"""How XLA:CPU compiles what is not about bits: in a hurry."""

import jax

# The emitters that XLA:CPU had before, until jax 0.11 took them out; they round otherwise here and
# there. A small step takes 0.3 s to compile by the new ones, 0.1 s by these, and 0.04 s by these
# without LLVM's optimisations, which save the new ones next to nothing.
FASTER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ >= (0, 11):
    FASTER = ""

# For processes of their own. On one device: the eight of conftest.py would each want threads.
IN_A_HURRY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": FASTER}
