"""Amounts of memory: what they are of, and how they are printed."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adam_jax._compat import itemsize_bits
from adam_jax._types import Leaf
from adam_jax.columns import aligned

SHARED = "(shared)"
"""The group of what is no parameter's: counts, hyperparameters, buffers of several leaves."""


class PerParameter(NamedTuple):
    """Bytes per element of the parameters."""

    parameters: float
    gradients: float
    state: float
    total: float


@dataclasses.dataclass(frozen=True)
class Bytes:
    """What a model takes, or a group of its leaves; printed, it is a table.

    Of one copy: what is replicated over devices counts once.

    Attributes:
      size: elements of the parameters.
      parameters: bytes of the parameters.
      gradients: bytes of the gradients.
      state: bytes of the optimizer's state.
      groups: the same of each group, by name, which add up to this. What is in the state and no
        parameter's is in "(shared)".
      lost_codes: paths of parameters whose moments stay float32 where codes were asked for, as no
        block of 32 or more fits into the part of them that one device has.
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
        """Each of them, and all, by the elements; 0 where there are none."""
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
    """What a model takes, and a step; printed, it is two tables.

    Attributes:
      model: parameters, gradients, state.
      platform: that the step is compiled for, "cpu", "gpu" or "tpu".
      arguments: bytes of what the step is given, on each device, as what follows.
      results: bytes of results that do not lie in the memory of donated arguments. More than a
        pointer for each array is a copy (see `adam_jax.step`).
      temporaries: bytes that are there while the step runs.
      on_tpus: of each leaf that is stepped, by its path: "one kernel", or "XLA: ..." with why.
      undeclared: subtrees whose leaves look as if they held several layers, of which `with_layers`
        was told nothing, and how many layers.
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
    """What to say of a subtree whose leaves look as if they held so many layers."""
    expression = f"{prefix}/.*" if prefix else ".*"
    return (
        f"all leaves below {prefix!r} have {count} along their first axis: if these are layers,"
        f" write with_layers(tx, {expression!r})"
    )


class LiveBytes(NamedTuple):
    """What arrays occupy.

    Attributes:
      total: bytes on all devices of this process.
      per_device: bytes on each, by its name. Memory that is not the device's own, such as
        "pinned_host", is a row of its own.
    """

    total: int
    per_device: dict[str, int]

    @property
    def largest(self) -> int:
        """Bytes on the device that has most."""
        return max(self.per_device.values(), default=0)


def bytes_of(x: Leaf) -> int:
    """Of an array or its description, where two codes of 4 bits are one byte, as in memory."""
    known = isinstance(x.dtype, np.dtype)  # Not so the dtypes of random keys.
    bits = itemsize_bits(x.dtype) if known else 8 * x.dtype.itemsize
    return -(-x.size * bits // 8)


def _readable(n: int) -> str:
    power = min((len(str(n)) - 1) // 3, 4)
    return f"{n / 1000**power:.2f} {'kMGT'[power - 1]}B" if power else f"{n} B"
