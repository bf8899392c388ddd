# SPDX-License-Identifier: Apache-2.0
"""All kernels of the bench, ours and public, with the block sizes to try of each.

A kernel is called operation/direction/name; those of one operation and direction compete.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxlm.bench import attention_kernels as attention
from jaxlm.bench import attention_public_kernels as public
from jaxlm.bench import cross_entropy_kernels as cross_entropy
from jaxlm.bench import grouped_matmul_kernels as grouped
from jaxlm.bench.kernel_runs import Work
from jaxlm.bench.kernel_tables import public_blocks
from pallas_kernels.attention.tpu_backward_blocks import backward_class
from pallas_kernels.tuning.attention import forward_class
from pallas_kernels.tuning.cross_entropy import fitted
from pallas_kernels.tuning.table import SIZES

Sizes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How to build a kernel, and which block sizes are worth a try.

    row: the row of the table that a shape stands for: operation, class of shape, names of sizes
    """

    operation: str
    direction: str
    name: str
    build: Callable[..., Work]  # of a shape, a chip and block sizes
    candidates: Callable[[Any, str], list[Sizes]] = lambda shape, chip: []
    choice: Callable[[Any, str], Any] | None = None  # ours: the blocks that the tables give
    row: Callable[[Any], tuple[str, str, tuple[str, ...]] | None] = lambda shape: None

    @property
    def id(self) -> str:
        return f"{self.operation}/{self.direction}/{self.name}"

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("ours")

    @property
    def shapes(self) -> dict[str, Any]:
        return SHAPES[self.operation]

    def has_row(self, shape: str) -> bool:
        """Whether a search at this shape decides a row of our tables."""
        return self.is_ours and self.row(self.shapes[shape]) is not None

    def work(self, shape: str, chip: str, blocks: Sizes | None) -> Work:
        """What to compile; blocks None: ours as the tables say, a public one at its best known."""
        at = self.shapes[shape]
        sizes = blocks or self.standing(shape, chip)
        if self.choice is None:
            return self.build(at, chip, **sizes)
        return self.build(at, chip, blocks=type(self.choice(at, chip))(**sizes))

    def standing(self, shape: str, chip: str) -> Sizes:
        """Ours: what the tables give; a public one: of its table, else its first candidate."""
        at = self.shapes[shape]
        if self.choice is None:
            tried = self.candidates(at, chip)
            return public_blocks(self.id, shape, chip) or (tried[0] if tried else {})
        stands = self.choice(at, chip)
        return stands._asdict() if hasattr(stands, "_asdict") else dataclasses.asdict(stands)

    def tried(self, shape: str, chip: str) -> list[Sizes]:
        """Block sizes to try, what stands first for ours."""
        at = self.shapes[shape]
        if self.choice is None:
            return self.candidates(at, chip)
        stands = self.standing(shape, chip)
        changed = [stands | change for change in self.candidates(at, chip)]
        return [stands, *(some for some in changed if some != stands)]


SHAPES: dict[str, dict[str, Any]] = {
    "attention": dict(attention.SHAPES),
    "cross_entropy": dict(cross_entropy.SHAPES),
    "grouped_matmul": dict(grouped.SHAPES),
}


def _row(operation: str, shape_class: str) -> tuple[str, str, tuple[str, ...]]:
    return operation, shape_class, SIZES[operation]


def _forward_row(shape: Any) -> tuple[str, str, tuple[str, ...]] | None:
    """One shape decides for its class, the others of the class follow it."""
    names = ("causal_4k", "window_8k", "documents_8k")
    if shape not in [attention.SHAPES[name] for name in names]:
        return None
    return _row("attention_forward", forward_class(not shape.has_ids, shape.window))


def _backward_row(shape: Any) -> tuple[str, str, tuple[str, ...]] | None:
    if _forward_row(shape) is None:
        return None
    return _row("attention_backward", backward_class(not shape.has_ids, shape.window))


def _cross_entropy_row(shape: Any) -> tuple[str, str, tuple[str, ...]] | None:
    return _row("cross_entropy", f"{shape.V} x {shape.D}")


def _grouped_row(shape: Any, direction: str) -> tuple[str, str, tuple[str, ...]] | None:
    s, sizes = shape
    if len(set(sizes.tolist())) > 1:  # groups of equal sizes decide
        return None
    D, F = (s.F, s.D) if direction == "dx" else (s.D, s.F)
    shape_class = f"{D} x {F}" if direction == "dw" else f"{s.E} x {D} x {F}"
    return _row(f"grouped_matmul_{direction}", shape_class)


def _flash_blocks(shape: Any, chip: str) -> list[Sizes]:
    pairs = ((1024, 1024), (1024, 512), (512, 512), (2048, 1024), (512, 1024), (2048, 2048))
    return [{"block_q": q, "block_kv": kv} for q, kv in pairs]


def _splash_blocks(shape: Any, chip: str, *, is_backward: bool) -> list[Sizes]:
    if shape.window is not None:
        sizes = [(1024, 1024, 512), (512, 512, 512), (512, 1024, 512), (1024, 512, 512)]
    elif is_backward:
        sizes = [(1024, 1024, 512), (1024, 1024, 256), (2048, 2048, 1024), (512, 1024, 512)]
        sizes += [(1024, 1024, 1024), (512, 512, 512), (1024, 2048, 512)]
    else:
        sizes = [(1024, 1024, 512), (2048, 2048, 1024), (1024, 1024, 256), (1024, 2048, 512)]
        sizes += [(1024, 1024, 1024), (2048, 2048, 512), (512, 512, 512), (2048, 1024, 512)]
    names = ("block_q", "block_kv", "compute")
    return [dict(zip(names, some, strict=True)) for some in sizes]


def _megablox_tiles(shape: Any, chip: str, direction: str) -> list[Sizes]:
    s, _ = shape
    D, F = (s.F, s.D) if direction == "dx" else (s.D, s.F)
    ks = (2048, 1024) if direction == "dw" else (D, 2048)
    sizes = dict.fromkeys(
        (m, _divisor(D, k), _divisor(F, n))
        for m, k, n in [
            (512, ks[0], 1024), (256, ks[0], 1024), (512, ks[1], 2048), (256, ks[0], 2048),
            (128, ks[0], 1024), (512, ks[0], 512),
        ]
    )  # fmt: skip
    return [dict(zip("mkn", some, strict=True)) for some in sizes]


def _divisor(width: int, wanted: int) -> int:
    """The tile of whole lanes that parts a width evenly and is next to what is wanted."""
    even = [n for n in range(128, width + 1, 128) if width % n == 0]
    return min(even, key=lambda n: abs(n - wanted))


def _forward_changes(shape: Any, chip: str) -> list[Sizes]:
    stands = attention.forward_choice(shape, chip)
    sizes = itertools.product((512, 1024, 2048), (512, 1024), (256, 512))
    return [
        {"queries": q, "keys": k, "diagonal": d, "chunk": _up(stands.chunk, max(q, k))}
        for q, k, d in sizes
        if q % k == 0
    ]


def _backward_changes(shape: Any, chip: str) -> list[Sizes]:
    sizes = itertools.product((512, 1024, 2048), (512, 1024), (128, 256))
    return [{"block_kv": b, "tile_q": t, "block_diag": d} for b, t, d in sizes if b >= t]


def _cross_entropy_changes(shape: Any, chip: str) -> list[Sizes]:
    """Those that a row of the table gives back as they were tried: which fit, and are shared."""
    sizes = list(itertools.product((512, 1024), (256, 384, 512, 768)))
    found = [fitted(chip, shape.R, shape.V, shape.D, 2, 2, *some) for some in sizes]
    return [
        c._asdict() for c, some in zip(found, sizes, strict=True) if (c.rows, c.block_v) == some
    ]


def _grouped_changes(shape: Any, chip: str, direction: str) -> list[Sizes]:
    stands = grouped.choice(shape, chip, direction)
    half = max(stands.columns // 256 * 128, 128)
    return [{"rows": r, "columns": c} for r in (256, 512) for c in (stands.columns, half)]


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _all() -> list[Kernel]:
    Attention = partial(Kernel, "attention")
    kernels = [
        Attention(
            "forward", name, partial(attention.forward, paths=paths), _forward_changes,
            attention.forward_choice,
            _forward_row if name == "ours" else lambda shape: None,
        )
        for name, paths in (("ours", "online"), ("ours_bounded", "bounded"))
    ]  # fmt: skip
    kernels += [
        Attention(
            "backward", "ours", attention.backward, _backward_changes, attention.backward_choice,
            _backward_row,
        ),
        Attention("forward", "flash", public.flash, _flash_blocks),
    ]  # fmt: skip
    for direction, is_backward in (("forward", False), ("backward", True)):
        kernels += [
            Attention(
                direction, name, partial(build, is_backward=is_backward),
                partial(_splash_blocks, is_backward=is_backward),
            )
            for name, build in (("splash", public.splash), ("tokamax", public.tokamax_splash))
        ]  # fmt: skip
        xla = partial(public.plain_xla, is_backward=is_backward)
        kernels.append(Attention(direction, "xla", xla))
    CrossEntropy = partial(Kernel, "cross_entropy", "both")
    kernels += [
        CrossEntropy(
            "ours",
            cross_entropy.ours,
            _cross_entropy_changes,
            cross_entropy.choice,
            _cross_entropy_row,
        ),
        CrossEntropy(
            "ours_f32_table",
            partial(cross_entropy.ours, table_bytes=4),
            choice=partial(cross_entropy.choice, table_bytes=4),
        ),
        CrossEntropy("xla_products", cross_entropy.products),
        CrossEntropy("xla_chunked", cross_entropy.chunked),
    ]
    for direction in grouped.DIRECTIONS:
        Grouped = partial(Kernel, "grouped_matmul", direction)
        tiles = partial(_megablox_tiles, direction=direction)
        build = partial(grouped.megablox, direction=direction)
        kernels += [
            Grouped(
                "ours", partial(grouped.ours, direction=direction),
                partial(_grouped_changes, direction=direction),
                partial(grouped.choice, direction=direction),
                partial(_grouped_row, direction=direction),
            ),
            Grouped("megablox", build, tiles),
            Grouped("tokamax", partial(build, is_tokamax=True), tiles),
            Grouped("ragged_dot", partial(grouped.ragged_dot, direction=direction)),
        ]  # fmt: skip
    return kernels


KERNELS = {kernel.id: kernel for kernel in _all()}
