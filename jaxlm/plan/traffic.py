# SPDX-License-Identifier: Apache-2.0
"""Bytes that a program moves to and from HBM, operation by operation.

An operation reads its operands and writes its results, as far as they lie in HBM (memory space 0).
A fusion that only takes slices of an operand reads those, and one that updates a slice in place
writes that slice.  Each buffer counts once per operation: what is read again from HBM inside of one
operation, tile by tile, is not seen, so this is a lower estimate for large matrix products.
"""

from jaxlm.plan.collectives import KINDS, carries_on, ragged_bytes
from jaxlm.plan.hlo import HBM, HOST, Array, Computation, Module, Op

FREE = {  # their bytes, if any, are those of the operations that use them
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while", "call",
    "conditional", "opt-barrier", "partition-id", "replica-id", "add-dependency", "async-update",
}  # fmt: skip
COPIES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
NO_TRAFFIC = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective", "AssumeGatherIndicesInBound")


def hbm_bytes(arrays: tuple[Array, ...]) -> float:
    """Of those that lie in HBM."""
    return sum(a.num_bytes for a in arrays if a.space == HBM)


def is_free(op: Op) -> bool:
    """Whether an operation does nothing itself: it names a value, or waits for one."""
    if op.kind == "custom-call":
        return (op.text("custom_call_target") or "").startswith(NO_TRAFFIC)
    return op.kind in FREE or op.kind.endswith("-done")


def is_view(op: Op) -> bool:
    """Whether an operation of a fusion only shows its operand in another shape or tiling."""
    is_aliased = op.kind == "fusion" and "output_to_operand_aliasing={{}:" in op.attributes
    return op.kind == "bitcast" or (is_aliased and len(op.operands) == 1)


class Traffic:
    """Reads the bytes of a module's operations; what fused computations take is kept."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._fused: dict[str, tuple[dict[int, float | None], float | None]] = {}

    def of(self, computation: Computation, op: Op) -> float:
        """HBM bytes of one scheduled operation, one turn."""
        if is_free(op):
            return 0.0
        operands = [hbm_bytes(computation.arrays(name)) for name in op.operands]
        if op.kind == "fusion":
            return self._fusion(op, operands)
        if op.kind in ("dynamic-slice", "slice", "gather"):
            return 2 * hbm_bytes(op.arrays)
        if op.kind == "dynamic-update-slice":
            return 2 * operands[1]
        if op.kind == "send":  # the host reads it where it is
            return operands[0]
        if op.kind == "ragged-all-to-all":  # rows that go, rows that come
            return 2 * ragged_bytes(computation, op)
        if op.kind in COPIES:
            num_bytes, spaces = self._copied(computation, op)
            return num_bytes * spaces.count(HBM)
        if op.kind.endswith("-start"):
            return sum(operands)
        return sum(operands) + hbm_bytes(op.arrays)

    def host_bytes(self, computation: Computation, op: Op) -> float:
        """Of a copy to or from the host's memory."""
        if op.kind not in COPIES:
            return 0.0
        num_bytes, spaces = self._copied(computation, op)
        return num_bytes if HOST in spaces else 0.0

    def _copied(self, computation: Computation, op: Op) -> tuple[float, tuple[int, int]]:
        """Bytes that a copy moves, and the memory spaces from and to which."""
        given = [computation.arrays(name)[0] for name in op.operands]
        if op.kind == "dynamic-update-slice-start":  # ((whole, part, indices), whole, context)
            return given[1].num_bytes, (given[1].space, given[0].space)
        # (to, from, context) of a copy, ((from, indices), to, context) of a slice
        to = op.arrays[0 if op.kind == "copy-start" else -2]
        return to.num_bytes, (given[0].space, to.space)

    def _fusion(self, op: Op, operands: list[float]) -> float:
        inside = op.called("calls") or ""
        taken, written = self._fusion_io(inside, carries_on(op))
        total = 0.0
        for i, whole in enumerate(operands):
            part = taken.get(i)
            total += whole if part is None else min(whole, part)
        result = hbm_bytes(op.arrays)
        return total + (result if written is None else min(result, written))

    def _fusion_io(
        self, name: str, carries: bool = False
    ) -> tuple[dict[int, float | None], float | None]:
        """Bytes read of each operand and written in all; None: as much as there is."""
        if name not in self._fused:
            computation = self.module.computations[name]
            reads = {
                i: self._read(computation, op.name, carries)
                for i, op in computation.parameters.items()
            }
            self._fused[name] = reads, self._written(computation, computation.root, carries)
        return self._fused[name]

    def _read(self, computation: Computation, name: str, carries: bool) -> float | None:
        """What the users of a value take of it."""
        total = 0.0
        for user in computation.users.get(name, []):
            part = self._taken(computation, user, name, carries)
            if part is None:
                return None
            total += part
        return total

    def _taken(self, computation: Computation, user: Op, name: str, carries: bool) -> float | None:
        """What one user takes of a value; None: all of it."""
        is_first = bool(user.operands) and user.operands[0] == name
        if is_view(user):
            return self._read(computation, user.name, carries)
        if user.kind in ("dynamic-slice", "slice") and is_first:
            return sum(a.num_bytes for a in user.arrays)
        if user.kind == "fusion":
            inner, _ = self._fusion_io(user.called("calls") or "")
            parts = [inner.get(i) for i, operand in enumerate(user.operands) if operand == name]
            return None if None in parts else sum(part for part in parts if part is not None)
        is_free = (
            (user.kind == "dynamic-update-slice" and is_first)
            or (user.kind == "tuple" and user.is_root)
            or (user.kind == "custom-call" and "AsyncCollective" in user.attributes)
            or (carries and user.kind in KINDS)
        )
        return 0.0 if is_free else None

    def _written(self, computation: Computation, op: Op, carries: bool) -> float | None:
        """What the value of an operation writes when it leaves the fusion."""
        if op.kind == "tuple":
            parts = [self._written_by(computation, name, carries) for name in op.operands]
            return sum(parts)
        return self._written_by(computation, op.name, carries)

    def _written_by(self, computation: Computation, name: str, carries: bool) -> float:
        op = computation.by_name[name]
        if op.kind in ("parameter", "custom-call") or (carries and op.kind in KINDS):
            return 0.0
        if is_view(op):
            return self._written_by(computation, op.operands[0], carries)
        if op.kind == "dynamic-update-slice":
            return sum(a.num_bytes for a in computation.arrays(op.operands[1]))
        if op.kind == "fusion":
            written = self._fusion_io(op.called("calls") or "")[1]
            whole = sum(a.num_bytes for a in op.arrays)
            return whole if written is None else min(whole, written)
        return sum(a.num_bytes for a in op.arrays)
