"""The operations of a program that XLA compiled for a TPU, and their bytes through HBM.

`cost_analysis` is not enough: it ignores custom calls, and counts VMEM as memory.
"""

import math
import re
from typing import NamedTuple

HBM, FLAGS = 0, 2  # Numbers of memory spaces: S(1) is VMEM; a layout without one is in HBM.
SMALL = 64 * 1024  # Bytes through HBM, and
SHORT = 5_000  # cycles: an operation below both is little more than its launch.


class Buffer(NamedTuple):
    """An array in a program."""

    bytes: int  # Including the padding of its tiles.
    space: int


class Op(NamedTuple):
    """An operation that takes time."""

    name: str
    opcode: str
    hbm: int  # Bytes of operands and results in HBM.
    cycles: int | None  # XLA's estimate; None for a custom call.
    target: str  # Of a custom call.

    @property
    def big(self) -> bool:
        """Whether it is more than its launch."""
        return self.hbm > SMALL or (self.cycles or 0) > SHORT

    @property
    def kernel(self) -> bool:
        """Whether it is a Pallas kernel."""
        return self.target == "tpu_custom_call"


ARRAY = re.compile(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](?:\{([\d,]*)(:[^}]*)?\})?")
COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(.*)")
CALLED = re.compile(r"(?:to_apply|body|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")
COLLECTIVES = "all-gather all-reduce reduce-scatter all-to-all collective-permute".split()
BETWEEN_SLICES = re.compile(r'xla_megascale_runtime.*_xla_host_transfer_rendezvous="([a-z-]+)')
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"partition-id", "replica-id"}


def _ints(text: str | None) -> list[int]:
    return [int(x) for x in (text or "").split(",") if x]


def buffers(shape: str) -> list[Buffer]:
    """Parses a text like `(f32[8,100]{1,0:T(8,128)S(1)}, u32[]{:S(2)})`."""
    found = []
    for bits, dims, minor_to_major, layout in ARRAY.findall(shape):
        sizes, tile = _ints(dims), re.search(r"T\(([\d,]+)\)", layout)
        # The last number of a tile is for the axis that is named first.
        for axis, size in zip(
            _ints(minor_to_major), reversed(_ints(tile and tile[1])), strict=False
        ):
            sizes[axis] = math.ceil(sizes[axis] / size) * size
        space = re.search(r"S\((\d+)\)", layout)
        found.append(
            Buffer(math.prod(sizes) * int(bits or 8) // 8, int(space[1]) if space else HBM)
        )
    return found


def _through_hbm(opcode: str, results: list[Buffer], operands: list[Buffer]) -> int:
    if opcode in ("copy-start", "slice-start"):
        # Source and destination are among the results; it reads as much as it writes.
        arrays = [x for x in results if x.space != FLAGS]
        moved = min(x.bytes for x in arrays)
        return moved * sum(x.space == HBM for x in arrays)
    return sum(x.bytes for x in results + operands if x.space == HBM)


def operations(text: str) -> list[Op]:
    """The operations that take time in one call of an optimized program, outside of fusions.

    Of a conditional the branch that moves most counts, of a loop all its known iterations, of an
    asynchronous pair the start.
    """
    lines, computations = [], {}
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            lines = computations["ENTRY" if header[1] else header[2]] = []
        elif instruction := INSTRUCTION.match(line):
            lines.append(instruction.groups())

    def of(computation: str) -> list[Op]:
        known, found = {}, []
        for name, shape, opcode, operands, attributes in computations[computation]:
            known[name] = buffers(shape)
            if opcode in ("call", "conditional", "while"):
                called = re.findall(r"%([\w.-]+)", " ".join(CALLED.findall(attributes)))
                parts = [of(callee) for callee in called]
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', attributes)
                if opcode == "conditional":
                    parts = [max(parts, key=lambda ops: sum(op.hbm for op in ops))]
                found += sum(parts, []) * (int(turns[1]) if turns else 1)
            elif opcode not in FREE and not opcode.endswith("-done"):
                target = re.search(r'custom_call_target="([^"]*)"', attributes)
                if target and target[1].endswith("Bitcast"):
                    continue
                read = [x for o in re.findall(r"%([\w.-]+)", operands) for x in known.get(o, [])]
                hbm = _through_hbm(opcode, known[name], read)
                cycles = re.search(r'"estimated_cycles":"(\d+)"', attributes)
                estimated = int(cycles[1]) if cycles else None if target else 0
                found.append(Op(name, opcode, hbm, estimated, target[1] if target else ""))
        return found

    return of("ENTRY")


def collectives(text: str) -> dict[tuple[str, str], tuple[int, float]]:
    """Number and bytes of the results of collectives, by name and link; of a start its largest.

    Within a slice they go over ICI. For one between slices XLA sends the slice's part over the
    network (DCN) with a host transfer, which names the collective.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for line in text.splitlines():
        if not (match := INSTRUCTION.match(line)):
            continue
        _, result, opcode, _, rest = match.groups()
        name, link, of_result = opcode.removesuffix("-start"), "ICI", sum
        if opcode == "send" and (between := BETWEEN_SLICES.search(rest)):
            name, link, of_result = between[1], "DCN", max  # The others are its context.
        elif name not in COLLECTIVES:
            continue
        elif name != opcode:
            of_result = max
        arrays = [
            int(bits or 8) / 8 * math.prod(_ints(dims)) for bits, dims, *_ in ARRAY.findall(result)
        ]
        found.setdefault((name, link), []).append(of_result(arrays))
    return {key: (len(sizes), sum(sizes)) for key, sizes in found.items()}
