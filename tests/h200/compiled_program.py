"""Reading what the compilers left of one program (tests/h200/compile_for_h200.py)."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Of these an array is named, not made.
_NAMING = {"parameter", "get-tuple-element", "bitcast", "constant"}
_MADE = re.compile(r"\s+(?:ROOT )?%\S+ = (\w+)\[([\d,]*)\]\S* ([\w-]+)\(")  # dtype, dimensions, operation

_DIMS = r"\w+\[([\d,]*)\]"


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a kernel of ours."""

    registers: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Launch:
    """One entry of what XLA runs. depth: 0 outside everything, 1 inside a command buffer, loop or branch, …"""

    depth: int
    kind: str
    name: str

    @property
    def is_ours(self) -> bool:
        return self.kind == "kCustomCall"

    @property
    def is_product(self) -> bool:
        """A matrix product, by XLA's own kernel or a library's."""
        return self.name.startswith("gemm_fusion") or self.kind in ("kGemm", "kCublasLtMatmul", "kCuDnn")


def read_ptxas(text: str) -> list[Kernel]:
    """Every kernel that the assembler reported on, in its order."""
    reports = text.split("Compiling entry function")[1:]
    return [
        Kernel(
            registers=_number(r"Used (\d+) registers", report),
            stack_bytes=_number(r"(\d+) bytes stack frame", report),
            spill_bytes=_number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes spill loads", report),
        )
        for report in reports
    ]


class Program:
    """One compiled program. Raises ValueError where a compiler's output is not as this reader knows it."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._hlo = (folder / "hlo.txt").read_text()
        serialized = folder / "serialized"  # left of whole steps only
        self.serialized_bytes = serialized.stat().st_size if serialized.exists() else None
        self._thunks = (folder / "thunks.txt").read_text()
        self._ptxas = (folder / "ptxas.txt").read_text()
        memory: dict[str, int] = json.loads((folder / "memory.json").read_text())
        self.alias_bytes, self.temp_bytes, self.argument_bytes = memory["alias"], memory["temp"], memory["argument"]

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Kernels of ours, each once, however often it is called."""
        return read_ptxas(self._ptxas)

    @cached_property
    def launches(self) -> list[Launch]:
        found = re.findall(r"^( *)\d+: (k\w+) +\[[^\]]*\] *(\S*)", self._thunks, re.MULTILINE)
        if len(found) != len(re.findall(r"\bk[A-Z]\w+ +\[", self._thunks)) or not found:
            raise ValueError(f"{self.name}: not every line of the thunk sequence was understood")
        return [Launch(len(indent) // 4, kind, name) for indent, kind, name in found]

    @cached_property
    def num_calls(self) -> int:
        """Calls of kernels of ours."""
        return self._hlo.count('custom_call_target="mosaic_gpu')

    @cached_property
    def collectives(self) -> list[tuple[str, int]]:
        """(operation, elements of the largest array) of everything that devices tell each other."""
        pattern = r" = ([^=]*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
        return [
            (operation, max(math.prod(map(int, filter(None, dims.split(",")))) for dims in re.findall(_DIMS, shapes)))
            for shapes, operation in re.findall(pattern, self._hlo)
        ]

    @cached_property
    def num_sorts(self) -> int:
        return len(re.findall(r"\bsort\(", self._hlo))

    def between_layers(self, num_layers: int) -> list[Launch]:
        """What runs from the end of the middle layer's kernels of ours to the end of the next layer's."""
        ours = [i for i, launch in enumerate(self.launches) if launch.is_ours]
        each = len(ours) // num_layers
        if each == 0:
            raise ValueError(f"{self.name}: {len(ours)} calls of kernels of ours in {num_layers} layers")
        middle = num_layers // 2 * each
        return self.launches[ours[middle - 1] + 1 : ours[middle + each - 1] + 1]

    @cached_property
    def _buffers(self) -> list[tuple[str, str, str]]:
        """(dtype, dimensions, operation) of every instruction that has a buffer: those within fusions have none."""
        fused = set(re.findall(r" fusion\(.*?calls=%([\w.-]+)", self._hlo))
        buffers: list[tuple[str, str, str]] = []
        inside = ""
        for line in self._hlo.splitlines():
            if header := re.match(r"(?:ENTRY )?%([\w.-]+) .*\{$", line):
                inside = header[1]
            elif inside not in fused and (made := _MADE.match(line)):
                buffers.append((made[1], made[2], made[3]))
        if not buffers:
            raise ValueError(f"{self.name}: no instruction was understood")
        return buffers

    def made(self, *shape: int) -> list[str]:
        """Operations that make an array of this shape, of whatever dtype, in memory: "f32 copy", …"""
        dimensions = ",".join(map(str, shape))
        return [
            f"{dtype} {operation}"
            for dtype, dims, operation in self._buffers
            if dims == dimensions and operation not in _NAMING
        ]


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"nothing like {pattern!r} in {text[:500]!r}")
    return int(match[1])
