# SPDX-License-Identifier: Apache-2.0
"""Collectives of a program: kind, bytes on the wire, which mesh axes they run over, async or not.

How the TPU compiler writes them:

* a reduce-scatter as a custom fusion of an all-reduce and a slice (`all-reduce-scatter`, emitter
  SingleInputAllReduceScatterFusion): it sends what a reduce-scatter sends, each shard once;
* an asynchronous one as two fusions, with the custom calls AsyncCollectiveStart and
  AsyncCollectiveDone, and fusions between them that carry it on beside their own work and repeat
  its text: it counts once, at its start;
* others as `all-gather-start` ... `-done`, or `async-start` of a computation that holds one;
* the part of one that goes from slice to slice as a `send` to the host and a `recv` from it.

Wire bytes are what one device sends when the algorithm is a ring: of n devices, an all-gather sends
n - 1 shards, a reduce-scatter the same, an all-reduce both.

How many rows a ragged all-to-all sends only its inputs say.  Its buffers say the most: on one side
all rows of a device, on the other the worst case, room for those of all devices (nn/exchange.py).
Experts are taken as evenly loaded, so every device sends as many rows as the smaller side holds,
of which 1 of n stays.
"""

import dataclasses
import itertools
import math
import re

import numpy as np

from jaxlm.core.errors import ConfigError
from jaxlm.plan.hlo import Computation, Module, Op

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
Groups = tuple[tuple[int, ...], ...]
# mesh['a'=2,'b'=4] {'b'}, with the devices' order between: `(0,2,1,3)` or `, device_ids=([2,4]T(1,0))`
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]\s*(?:(?:,\s*device_ids=)?\((\[[\d,]+\](?:T\([\d,]+\))?|[^)]*)\))?"
    r"\s*\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation, one turn."""

    name: str  # of the scheduled operation
    kind: str
    wire_bytes: float  # that it sends
    group: tuple[int, ...]  # the first group's partitions
    is_async: bool
    is_far: bool = False  # goes from slice to slice, over the data-centre network


def wire_bytes(kind: str, operand_bytes: float, n: int) -> float:
    """What one of n devices sends, by a ring."""
    if n <= 1:
        return 0.0
    return {
        "all-gather": operand_bytes * (n - 1),
        "all-reduce": 2 * operand_bytes * (n - 1) / n,
        "collective-permute": operand_bytes,
        "collective-broadcast": operand_bytes,
    }.get(kind, operand_bytes * (n - 1) / n)


def collective_of(module: Module, computation: Computation, op: Op) -> Collective | None:
    """The collective that a scheduled operation is or starts; None for all others.

    The end of an asynchronous one (`-done`) and what carries it on are None, too.
    """
    if op.kind == "recv":
        return _between_slices(op)
    base = op.kind.removesuffix("-start")
    if base in KINDS:
        return _collective(op.name, computation, op, base, is_async=op.kind != base)
    inside = op.called("calls") or (op.called("to_apply") if op.kind.endswith("-start") else None)
    is_start = op.kind in ("async-start", "call-start")
    if inside not in module.computations or not (is_start or op.kind == "fusion"):
        return None
    found = list(module.inside(inside))
    targets = {o.text("custom_call_target") for _, o in found if o.kind == "custom-call"}
    is_fused_start = "AsyncCollectiveStart" in targets
    if op.kind == "fusion" and not is_fused_start and (
        "AsyncCollectiveDone" in targets or carries_on(op)
    ):  # fmt: skip
        return None
    for where, inner in found:
        if inner.kind in KINDS:
            is_scatter = "AllReduceScatter" in (op.text("emitter") or "") or (
                "all-reduce-scatter" in inside
            )
            kind = "reduce-scatter" if inner.kind == "all-reduce" and is_scatter else inner.kind
            return _collective(op.name, where, inner, kind, is_async=is_start or is_fused_start)
    return None


def _between_slices(op: Op) -> Collective | None:
    """What the hosts of several slices do: a `send` to them and a `recv`, which is waited for.

    Its target reads {1,2}x{0:3}: two slices, devices 0 to 3 of each.
    """
    kind = op.text("_xla_megascale_transfer_type")
    target = re.search(r"\{([\d,]+)\}x\{(?:\d+:)?(\d+)\}", op.text("_xla_megascale_target") or "")
    if kind is None or target is None:
        return None
    kind = kind.lower().replace("_", "-")
    slices, per_slice = target[1].count(",") + 1, int(target[2]) + 1
    share = {"all-gather": 1 / slices, "reduce-scatter": float(slices)}.get(kind, 1.0)
    sent = wire_bytes(kind, op.arrays[0].num_bytes * share, slices)
    group = tuple(range(0, slices * per_slice, per_slice))
    return Collective(op.name, kind, sent, group, is_async=True, is_far=True)


def carries_on(op: Op) -> bool:
    """Whether a fusion does a part of an asynchronous collective beside its own work."""
    return op.kind == "fusion" and (op.called("calls") or "").startswith("async_collective_fusion")


def ends(module: Module, op: Op) -> bool:
    """Whether an operation waits for the end of an asynchronous collective or copy."""
    if op.kind.endswith("-done"):
        return True
    inside = op.called("calls")
    return (
        op.kind == "fusion"
        and inside in module.computations
        and any(
            o.text("custom_call_target") == "AsyncCollectiveDone"
            for _, o in module.inside(inside)
            if o.kind == "custom-call"
        )
    )


def _collective(
    name: str, computation: Computation, op: Op, kind: str, *, is_async: bool
) -> Collective:
    given = [a for operand in op.operands for a in computation.arrays(operand)]
    operand_bytes = sum(a.num_bytes for a in given)
    if kind == "ragged-all-to-all":
        operand_bytes = ragged_bytes(computation, op)
    groups = replica_groups(op.attributes)
    group = groups[0] if groups else ()
    if kind == "collective-permute":
        group = _permuted(op.attributes)
    sent = wire_bytes(kind, operand_bytes, max(len(group), 1))
    return Collective(name, kind, sent, group, is_async)


def ragged_bytes(computation: Computation, op: Op) -> float:
    """Of the rows that one device has for a ragged all-to-all, under even load.

    Its operands are (rows, buffer for what comes, and where and how many: small).
    """
    return min(sum(a.num_bytes for a in computation.arrays(operand)) for operand in op.operands[:2])


def _permuted(attributes: str) -> tuple[int, ...]:
    """The cycle that starts at the first pair's source."""
    match = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", match[1]) if match else []
    goes = {int(a): int(b) for a, b in pairs}
    if not goes:
        return ()
    found = [next(iter(goes))]
    while (following := goes.get(found[-1])) is not None and following not in found:
        found.append(following)
    return tuple(found)


def replica_groups(attributes: str) -> Groups:
    """Groups of partitions, from any of the three ways to write them; () for all devices."""
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", match[1])
        )
    if match := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        shape, sizes = (tuple(int(n) for n in match[i].split(",")) for i in (1, 2))
        order = tuple(int(n) for n in match[3].split(",")) if match[3] else None
        devices = np.arange(math.prod(sizes)).reshape(sizes)
        return _rows((devices if order is None else devices.transpose(order)).reshape(shape))
    if match := _MESH.search(attributes):
        return _mesh_groups(match[1], match[2], match[3])
    if (match := re.search(r"replica_groups=(?!\{\})\S+", attributes)) is not None:
        raise ConfigError(
            f"the compiled program names groups of devices in a form that this plan cannot read: "
            f"{match[0][:100]!r}; plan with the version of libtpu in constraints/"
        )
    return ()


def _mesh_groups(axes: str, devices: str | None, along: str) -> Groups:
    """mesh['a'=2,'b'=4] {'b'}: groups along the named axes; `b:(1)2` is a part of an axis.

    devices: their order in the mesh, `0,2,1,3` or `[2,2]T(1,0)`; without it they are counted up
    """
    named = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", axes)}
    order = np.arange(math.prod(named.values()))
    if devices and (match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices)):
        shape = [int(n) for n in match[1].split(",")]
        turned = [int(n) for n in match[2].split(",")] if match[2] else range(len(shape))
        order = order.reshape(shape).transpose(turned).ravel()
    elif devices:
        order = np.array([int(n) for n in devices.split(",")])
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)
    sizes: list[int] = []
    chosen: list[int] = []
    for name, size in named.items():
        parts = [(int(before), int(n)) for axis, before, n in wanted if axis == name and n]
        if parts:
            before, n = parts[0]
            chosen.append(len(sizes) + 1)
            sizes += [before, n, size // (before * n)]
        else:
            if any(axis == name for axis, _, _ in wanted):
                chosen.append(len(sizes))
            sizes.append(size)
    rest = [i for i in range(len(sizes)) if i not in chosen]
    grid = order.reshape(sizes).transpose(rest + chosen)
    return _rows(grid.reshape(-1, math.prod(sizes[i] for i in chosen)))


def _rows(grid: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in grid)


def mesh_axes(group: tuple[int, ...], mesh: dict[str, int]) -> tuple[str, ...]:
    """Axes of the mesh along which the partitions of a group differ; () for one device.

    Partitions are numbered as the mesh's devices, its last axis fastest.  () as a group means all.
    """
    if not group:
        return tuple(name for name, size in mesh.items() if size > 1)
    where = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
    differs = (where != where[:, :1]).any(axis=1)
    return tuple(itertools.compress(mesh, differs))
