"""Amounts of memory and their printed tables."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adam_jax._compat import itemsize_bits
from adam_jax._types import Leaf
from adam_jax.columns import aligned

SHARED = "(shared)"
"""The group of arrays without a parameter: counts, hyperparameters."""


class PerParameter(NamedTuple):
    """Bytes per element of the parameters."""

    parameters: float
    gradients: float
    state: float
    total: float


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The memory of a model, or of a group of its leaves; it prints as a table.

    Arrays that are replicated over devices count once.

    Attributes:
      size: elements of the parameters.
      parameters: bytes of the parameters.
      gradients: bytes of the gradients.
      state: bytes of the optimizer's state.
      groups: the same for each group, by name; they add up to this. Arrays of the state that belong
        to no parameter are in "(shared)".
      lost_codes: paths of parameters whose moments stay float32 although codes were requested,
        since no block of 32 or more fits into one device's part of them.
    """

    size: int
    parameters: int
    gradients: int
    state: int
    groups: Mapping[str, "Bytes"] = dataclasses.field(default_factory=dict)
    lost_codes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.parameters + self.gradients + self.state

    @property
    def per_parameter(self) -> PerParameter:
        """Each of them and their total, per element; 0 if there are no elements."""
        parts = (self.parameters, self.gradients, self.state, self.total)
        return PerParameter(*(part / self.size if self.size else 0.0 for part in parts))

    def __str__(self) -> str:
        rows = [["", "size", *PerParameter._fields, "bytes"]]
        for name, x in (*self.groups.items(), ("all", self)):
            parts = [f"{part:.2f}" if x.size else "" for part in x.per_parameter]
            rows.append([name, f"{x.size:,}", *parts, _readable(x.total)])
        text = f"bytes per parameter\n{aligned(rows)}"
        if self.lost_codes:
            paths = ", ".join(self.lost_codes)
            text += f"\nfloat32, as no block of codes fits into a device's part: {paths}"
        return text


@dataclasses.dataclass(frozen=True)
class Report:
    """The memory of a model and of one step; it prints as two tables.

    Attributes:
      model: parameters, gradients, state.
      platform: the step is compiled for it: "cpu", "gpu" or "tpu".
      arguments: bytes of the step's arguments. These and the following are on each device.
      results: bytes of results that do not reuse the memory of donated arguments. More than a
        pointer for each array is a copy (see `adam_jax.step`).
      temporaries: bytes that are allocated only while the step runs.
      on_tpus: for each leaf that is stepped, by path: "one kernel", or "XLA: ..." with the reason.
      undeclared: subtrees whose leaves look like stacked layers that `with_layers` did not declare,
        and their number of layers.
    """

    model: Bytes
    platform: str
    arguments: int
    results: int
    temporaries: int
    on_tpus: dict[str, str]
    undeclared: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes on each device while the step runs."""
        return self.arguments + self.results + self.temporaries

    def __str__(self) -> str:
        rows = [["", "per parameter", "bytes"]]
        for name in ("arguments", "results", "temporaries", "peak"):
            value = getattr(self, name)
            rows.append([name, f"{value / max(self.model.size, 1):.2f}", _readable(value)])
        tables = f"{self.model}\n\na step, on each device ({self.platform})\n{aligned(rows)}"
        ways = collections.Counter(self.on_tpus.values())
        leaves = [["", "leaves"], *([way, str(n)] for way, n in ways.most_common())]
        text = f"{tables}\n\nstepped on TPUs by\n{aligned(leaves)}" if ways else tables
        for found in self.undeclared.items():
            text += f"\n\n{undeclared_layers(*found)}"
        return text


def undeclared_layers(prefix: str, count: int) -> str:
    """The warning about a subtree whose leaves look like `count` stacked layers."""
    expression = f"{prefix}/.*" if prefix else ".*"
    return (
        f"all leaves below {prefix!r} have a first axis of size {count}: if these are stacked"
        f" layers, write with_layers(tx, {expression!r})"
    )


class LiveBytes(NamedTuple):
    """The memory that arrays occupy.

    Attributes:
      total: bytes on all devices of this process.
      per_device: bytes on each device, by name. Memory other than the device's own, such as
        "pinned_host", has a separate entry.
    """

    total: int
    per_device: dict[str, int]

    @property
    def largest(self) -> int:
        """Bytes on the device that holds the most."""
        return max(self.per_device.values(), default=0)


def bytes_of(x: Leaf) -> int:
    """Bytes of an array or its description; two 4-bit codes are one byte, as in memory."""
    known = isinstance(x.dtype, np.dtype)  # Dtypes of random keys are not.
    bits = itemsize_bits(x.dtype) if known else 8 * x.dtype.itemsize
    return -(-x.size * bits // 8)


def _readable(n: int) -> str:
    power = min((len(str(n)) - 1) // 3, 4)
    return f"{n / 1000**power:.2f} {'kMGT'[power - 1]}B" if power else f"{n} B"
