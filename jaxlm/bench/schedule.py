# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler's own schedule of one kernel, read as cycles.  No TPU is needed.

libtpu compiles on any machine and, asked to, dumps every program's bundles: one bundle holds what
a TensorCore issues in one cycle.  In `packed-bundles-post-ra` the empty bundles that wait for
results are still there, so bundles are cycles; branches cut them into regions, and a region's
cycles times how often it runs add up to the kernel's time.

What this leaves out: waits for memory and semaphores, bank conflicts, fetching instructions.  It
has never been held against a TPU's clock: use it to rank programs, not to promise milliseconds.
"""

import dataclasses
import glob
import itertools
import re
from collections.abc import Callable
from pathlib import Path

# cycles per second: peak FLOP/s over the FLOPs of all matrix units in one cycle
CLOCK_HZ = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 2.2e9}
HBM_BYTES_PER_S = {"v5e": 819e9, "v5p": 2765e9, "v6e": 1640e9, "tpu7x": 3690e9}
TENSOR_CORES = {"v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 1}  # per JAX device
TOPOLOGY = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
DUMP_FLAGS = "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"  # for LIBTPU_INIT_ARGS
DELAY_SLOTS = 5  # bundles from a branch to the first that it decides about

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:(?:LH|LB|LE|PB|PF|CT)\s*)*:\s?(.*)$")
_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %s\w+, (\d+) /\* loop exit")
_BRANCH = re.compile(r"sbr\.rel(?:\.\w+)?\s*(?:\(!?%p\w+\))?\s*target bundleno = (\d+)")


@dataclasses.dataclass(frozen=True)
class Region:
    """A stretch of bundles that runs from its first to its last."""

    start: int
    stop: int
    loops: tuple[int, ...]  # start addresses of the loops around it, outermost first
    num_branches: int  # conditional blocks around it
    units: dict[str, int]  # issue slots used: MXU, VALU, XLU, EUP, VLOAD, VSTORE, ...

    @property
    def cycles(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Schedule:
    """All regions of one kernel, in the order of the program."""

    regions: tuple[Region, ...]
    capacity: dict[str, int]  # issue slots of each unit per cycle
    bounds: dict[int, int]  # turns of those loops, by start address, that the program states

    @property
    def num_bundles(self) -> int:
        return self.regions[-1].stop

    @property
    def num_spills(self) -> int:
        slots = ("VLOAD:FILL", "VSTORE:SPILL")
        return sum(region.units.get(slot, 0) for region in self.regions for slot in slots)

    @property
    def guarded_products(self) -> tuple[Region, ...]:
        """Regions with matrix products in the grid's loop that a branch of the kernel may skip."""
        return tuple(
            region
            for region in self.regions
            if len(region.loops) == 1 and self.depth(region) > 0 and region.units.get("MXU", 0)
        )

    def depth(self, region: Region) -> int:
        """Conditional blocks around it inside of the grid's loop; one may hold a whole step."""
        around = [r.num_branches for r in self.regions if len(r.loops) == 1]
        return region.num_branches - min(around, default=0)

    @property
    def inner_loops(self) -> tuple[int, ...]:
        """Loops inside of the grid's, in the order of the program."""
        return tuple(sorted({region.loops[-1] for region in self.regions if len(region.loops) > 1}))

    def cost(self, runs: Callable[[Region], float]) -> tuple[float, dict[str, float]]:
        """(cycles, share of its slots that each unit uses) when each region runs `runs(region)`."""
        cycles, issued = 0.0, dict.fromkeys(self.capacity, 0.0)
        for region in self.regions:
            n = runs(region)
            cycles += region.cycles * n
            for unit, slots in region.units.items():
                issued[unit] += slots * n
        return cycles, {u: n / max(cycles * self.capacity[u], 1) for u, n in issued.items()}


def read_schedule(folder: Path, kernel: str) -> Schedule:
    """The newest program in a dump whose name holds `kernel`.  Raises FileNotFoundError."""
    return _read(max(schedule_files(folder, f"*{kernel}*"), key=lambda p: p.stat().st_mtime_ns))


def read_schedules(folder: Path, kernel: str) -> list[Schedule]:
    """All programs whose name holds `kernel`, the shortest first.  Raises FileNotFoundError."""
    return sorted(
        map(_read, schedule_files(folder, f"*{kernel}*")), key=lambda one: one.num_bundles
    )


def read_exactly(folder: Path, name: str) -> Schedule | None:
    """The program of exactly this name (of an operation of XLA), None if there is none."""
    try:
        files = schedule_files(folder, f"[0-9]*-{glob.escape(name)}-[0-9]*")
    except FileNotFoundError:
        return None
    exact = re.compile(rf"\d+-{re.escape(name)}-\d+-packed-bundles-post-ra\.txt")
    files = [path for path in files if exact.fullmatch(path.name)]
    return _read(max(files, key=lambda p: p.stat().st_mtime_ns)) if files else None


def schedule_files(folder: Path, pattern: str) -> list[Path]:
    """Dumps of final schedules of the programs that a pattern names.  Raises FileNotFoundError."""
    dumps = [
        path
        for path in folder.glob(f"{pattern}-packed-bundles-post-ra.txt")
        if "schedule-analysis" not in path.name and "late-" not in path.name
    ]
    if not dumps:
        raise FileNotFoundError(f"no schedule of a kernel {pattern.strip('*')!r} in {folder}")
    return dumps


def _read(path: Path) -> Schedule:
    bundles = _bundles(path.read_text(encoding="utf-8", errors="replace"))
    prefix = re.sub(r"\d+-packed-bundles-post-ra\.txt$", "", path.name)
    (units_path,) = path.parent.glob(f"{prefix}*pre-delay_hlo-static-per-bundle-utilization.txt")
    names, capacity, slots = _utilization(units_path.read_text(encoding="utf-8"))
    forward, backward = _branches(bundles)
    ends = {x for jump in forward + backward for x in jump}
    cuts = sorted({0, len(bundles), *(x for x in ends if x < len(bundles))})
    regions = []
    for start, stop in itertools.pairwise(cuts):
        used = [sum(column) for column in zip(*slots[start:stop], strict=True)]
        inside = lambda jump, start=start, stop=stop: jump[0] <= start and stop <= jump[1]
        loops = sorted((jump for jump in backward if inside(jump)), key=lambda j: (j[0], -j[1]))
        num_branches = sum(map(inside, forward))
        units = {name: n for name, n in zip(names, used, strict=True) if n} if used else {}
        regions.append(Region(start, stop, tuple(j[0] for j in loops), num_branches, units))
    return Schedule(
        tuple(regions), dict(zip(names, capacity, strict=True)), _bounds(bundles, backward)
    )


def _bundles(text: str) -> list[str]:
    """The instructions of every bundle; addresses without a line of their own are empty."""
    found: dict[int, str] = {}
    last = None
    for line in text.splitlines():
        if match := _BUNDLE.match(line):
            last = int(match[1], 16)
            found[last] = match[2]
        elif last is not None:
            found[last] += line
    return [found.get(address, "") for address in range(max(found) + 1)]


def _branches(bundles: list[str]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Stretches that a branch skips, and stretches that one repeats."""
    forward, backward = [], []
    for address, bundle in enumerate(bundles):
        for match in _BRANCH.finditer(bundle):
            target = int(match[1])
            if target > address:
                forward.append((address + DELAY_SLOTS, target))
            else:
                backward.append((target, address + DELAY_SLOTS))
    return forward, backward


def _bounds(bundles: list[str], loops: list[tuple[int, int]]) -> dict[int, int]:
    """How often loops turn, where the exit test compares with a constant."""
    found = {}
    for address, bundle in enumerate(bundles):
        if match := _EXIT.search(bundle):
            around = [loop for loop in loops if loop[0] <= address < loop[1]]
            if around:
                found[max(around)[0]] = int(match[1])
    return found


def _utilization(text: str) -> tuple[list[str], list[int], list[list[int]]]:
    """Names of the units, slots of each per cycle, slots used in every bundle."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("== CAP"))
    names = [name.strip() for name in lines[at + 1].split(",")]
    capacity = [int(n) for n in lines[at + 2].split()]
    at = next(i for i, line in enumerate(lines) if line.startswith("== UTIL"))
    numbers = (line.split() for line in lines[at + 1 :])
    return names, capacity, [[int(n) for n in row] for row in numbers if len(row) == len(names)]
