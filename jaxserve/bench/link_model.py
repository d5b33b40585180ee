"""What a compiled program's devices tell each other, and how long that takes over links of stated speed.

The model: a start a collective, and then bytes at a link's rate, as a ring moves them (Thakur, Rabenseifner and Gropp,
2005): an all-reduce of b bytes over n devices carries 2 (n - 1) / n b over each link, an all-gather of b bytes in all
(n - 1) / n b. Where the devices lie on several hosts, the slower link between hosts counts for all. Nothing overlaps
with computation. A prediction: no link is measured here.
"""

import math
import re
from dataclasses import dataclass

_OPERATION = re.compile(
    r"^\s+(?:ROOT )?%\S+ = ([^=]*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}


@dataclass(frozen=True, slots=True)
class Collective:
    """kind: HLO's name of it. num_bytes: of the whole result."""

    kind: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Links:
    """Seconds a collective's start takes, and bytes a second each device sends, within a host and between hosts."""

    start_s: float
    bandwidth: float
    hosts_start_s: float
    hosts_bandwidth: float

    def seconds(self, collective: Collective, num_devices: int, num_hosts: int) -> float:
        """Of one collective over so many devices on so many hosts."""
        if num_devices == 1:
            return 0.0
        rounds = 2 if collective.kind == "all-reduce" else 1
        moved = rounds * (num_devices - 1) / num_devices * collective.num_bytes
        if num_hosts == 1:
            return self.start_s + moved / self.bandwidth
        return self.hosts_start_s + moved / self.hosts_bandwidth


def collectives_of(hlo: str) -> list[Collective]:
    """Those that every run of the program makes: not the ones in branches and loops, which greedy rows skip."""
    inside, found = "", list[Collective]()
    sometimes = _run_sometimes(hlo)
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.-]+) .*\{$", line):
            inside = header[1]
        elif inside not in sometimes and (operation := _OPERATION.match(line)):
            arrays = _ARRAY.findall(operation[1])
            if operation[3]:  # what a start gives names its operands too
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(operation[2], sum(_num_bytes(dtype, dims) for dtype, dims in arrays)))
    return found


def _run_sometimes(hlo: str) -> set[str]:
    """Computations that are branches, or the bodies and conditions of loops."""
    names: set[str] = set()
    for listed in re.findall(r"branch_computations=\{([^}]*)\}", hlo):
        names |= set(re.findall(r"%([\w.-]+)", listed))
    return names | set(re.findall(r"(?:true_computation|false_computation|body|condition)=%([\w.-]+)", hlo))


def _num_bytes(dtype: str, dims: str) -> int:
    return _BYTES.get(dtype, 1) * math.prod(map(int, filter(None, dims.split(","))))
