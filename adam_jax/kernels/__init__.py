"""The program of a leaf as one kernel on TPUs: everything that knows of tiles.

`Member.plan` imports this folder, for leaves that a kernel may step: Pallas takes half of the time
of `import adam_jax`.
"""

from adam_jax.kernels.pallas import by_kernel

__all__ = ["by_kernel"]
