"""How XLA:CPU compiles what is not about bits."""

import jax

# The emitters that XLA:CPU had before, until jax 0.11 took them out: with them the suite takes two
# thirds of the time, most of which is compilation. They round otherwise here and there.
FASTER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ >= (0, 11):
    FASTER = ""
