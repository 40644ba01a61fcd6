"""The order in which XLA:TPU stores the axes of an array.

A kernel reads its operands row by row. With jax 0.10.2 and libtpu 0.0.52, XLA:TPU stores a
program's arguments and results in the axis order that wastes the least of its tiles of 8 x 128
elements: (1024, 16, 64) with its first axis along the 128. An operand in another order is copied. A
step of 8-bit moments then moves 144 bytes per parameter instead of 16.

Delete it when tests/xla/test_layout.py finds all arguments in the order of their axes.
"""

import math


def order_on_tpus(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes in storage order: last the one along the 128, before it the one along the 8.

    Args:
      shape: two axes or more.
    """
    axes = range(len(shape))

    def size(pair: tuple[int, int]) -> int:
        second, last = pair
        rows = min(8, max(4, 1 << (shape[second] - 1).bit_length()))
        others = math.prod(shape[axis] for axis in axes if axis not in pair)
        return others * _multiple(shape[second], rows) * _multiple(shape[last], 128)

    pairs = [
        (second, last) for last in reversed(axes) for second in reversed(axes) if second != last
    ]
    pair = min(pairs, key=size)
    return (*(axis for axis in axes if axis not in pair), *pair)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
