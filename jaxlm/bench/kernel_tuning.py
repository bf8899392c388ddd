# SPDX-License-Identifier: Apache-2.0
"""Searches block sizes by static schedule: of public kernels to be fair, of ours to be fast.

    sweep: a public kernel's candidates; the best goes to bench/public_kernels.json
    tune:  ours, one row of the tables of pallas_kernels/tuning per (chip, class of shape)

What stands in a table stays unless a candidate is more than 1 % faster: edits that mean nothing
move a schedule by as much.  Scores come from the cache of bench/kernels.py, so that a search that
was broken off goes on where it was.
"""

from collections.abc import Iterator

from jaxlm.bench.kernel_tables import PUBLIC, keep_row, versions
from jaxlm.bench.kernels import Progress, Row, measure
from jaxlm.telemetry.readable import aligned
from pallas_kernels.tuning.table import KEYS, PATH

MARGIN = 0.99  # a candidate must come below this share of what stands


def search(todo: list[tuple[str, str, str]], most: int, progress: Progress) -> list[Row]:
    """The first `most` candidates of each (kernel, shape, chip)."""
    from jaxlm.bench.kernel_list import KERNELS

    tried = [(at, blocks) for at in todo for blocks in KERNELS[at[0]].tried(*at[1:])[:most]]
    rows = []
    for i, (at, blocks) in enumerate(tried):
        progress("try block sizes", i / len(tried), f"{', '.join(at)}: {_brief(blocks)}")
        rows.append(measure(*at, blocks))
    progress("try block sizes", 1.0, "")
    return rows


def groups(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of one kernel, shape and chip, in the order in which they were tried."""
    by_name: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_name.setdefault((row.kernel, row.shape, row.chip), []).append(row)
    yield from by_name.values()


def keep_best_public(rows: list[Row]) -> None:
    for group in groups(rows):
        best = min(group, key=lambda row: row.predicted_ms)
        if best.cost is not None:
            keep_row(
                PUBLIC,
                {
                    "kernel": best.kernel,
                    "shape": best.shape,
                    "chip": best.chip,
                    "blocks": best.blocks,
                    "predicted_ms": round(best.predicted_ms, 4),
                    "tried": len(group),
                    "versions": versions(),
                },
                ("kernel", "shape", "chip"),
            )


def keep_ours(rows: list[Row]) -> None:
    """Rows of the tables of pallas_kernels/tuning, for shapes that stand for a class."""
    from jaxlm.bench.kernel_list import KERNELS

    for group in groups(rows):
        best = winner(group)
        kernel = KERNELS[best.kernel]
        named = kernel.row(kernel.shapes[best.shape])
        if named is None or best.cost is None or best.blocks is None:
            continue
        operation, shape_class, sizes = named
        keep_row(
            PATH,
            {
                "operation": operation,
                "chip": best.chip,
                "shape_class": shape_class,
                "dtype": "bfloat16",
                "blocks": {name: best.blocks[name] for name in sizes},
                "predicted_ms": round(best.predicted_ms, 4),
                "versions": versions(),
            },
            KEYS,
        )


def winner(group: list[Row]) -> Row:
    """What stands, the first, unless another is faster by more than the margin."""
    best = min(group, key=lambda row: row.predicted_ms)
    return best if best.predicted_ms < MARGIN * group[0].predicted_ms else group[0]


def search_table(rows: list[Row]) -> Iterator[str]:
    """Every candidate with its score; * marks the one to take."""
    cells: list[tuple[str, ...]] = [("shape", "kernel", "chip", "", "predicted ms", "blocks")]
    for group in groups(rows):
        taken = winner(group) if group[0].is_ours else min(group, key=lambda r: r.predicted_ms)
        for row in group:
            score = f"{row.predicted_ms:.3f}" if row.cost else row.reason[:60]
            mark = "*" if row is taken else ""
            cells.append((row.shape, row.kernel, row.chip, mark, score, _brief(row.blocks)))
    yield from aligned(cells)


def _brief(blocks: dict | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (blocks or {}).items())
