# SPDX-License-Identifier: Apache-2.0
"""Rules of how often regions run: what they add up to, and that a changed kernel is refused."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.bench.grouped_matmul_kernels import meetings, num_visits
from jaxlm.bench.kernel_runs import ChangedError, Runs
from jaxlm.bench.schedule import Region, Schedule, read_schedule
from pallas_kernels.grouped_matmul.schedule import shared, visits
from pallas_kernels.grouped_matmul.specs import SPECS, zipf_sizes
from tests.jaxlm.bench.programs import dump


def kernel(*regions: tuple[int, tuple[int, ...], int, dict[str, int]]) -> Schedule:
    """Regions given as (cycles, loops, branches around it, issue slots)."""
    start, found = 0, []
    for cycles, loops, num_branches, units in regions:
        found.append(Region(start, start + cycles, loops, num_branches, units))
        start += cycles
    return Schedule(tuple(found), {"MXU": 2, "VALU": 4}, {})


def test_cycles_are_bundles_times_runs_shared_by_the_cores(tmp_path: Path) -> None:
    dump(tmp_path)
    schedule = read_schedule(tmp_path, "kernel")
    runs = Runs(steps=10, loops=(70,), before=4, after=4)
    # 2 + 2 outside; 6 + 2 + 8 per step; 6 per turn of the inner loop
    one, busy = schedule.cost(runs.of(schedule, cores=1))
    assert one == 4 + 16 * 10 + 6 * 70
    assert busy["MXU"] == pytest.approx(2 * 6 * 70 / (2 * one))
    two, _ = schedule.cost(runs.of(schedule, cores=2))
    assert two == 4 + 16 * 5 + 6 * 35


def test_guards_ahead_of_and_behind_the_last_product_have_counts_of_their_own() -> None:
    product = {"MXU": 8}
    grid = (0,)
    schedule = kernel(
        (5, grid, 1, {}),  # every step: a whole step lies inside of one condition here
        (10, grid, 3, {}),
        (100, grid, 3, product),
        (200, grid, 3, product),
        (20, grid, 3, {}),
    )
    runs = Runs(steps=1000, products=(3, 2), before=50, after=7)
    cycles, _ = schedule.cost(runs.of(schedule, 1))
    assert cycles == 5 * 1000 + 10 * 50 + 100 * 3 + 200 * 2 + 20 * 7


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (Runs(1, products=(1,)), "has 1 loops inside of its grid, its rule counts 0"),
        (Runs(1, loops=(1, 1), products=(1,)), "1 loops inside of its grid, its rule counts 2"),
        (Runs(1, loops=(1,)), "1 guarded regions with matrix products, its rule counts 0"),
        (Runs(1, loops=(1,), products=(1, 1)), "1 guarded regions .* counts 2: the kernel"),
    ],
)
def test_a_kernel_of_other_regions_than_its_rule_is_refused(runs: Runs, message: str) -> None:
    schedule = kernel((5, (0,), 0, {}), (9, (0, 6), 0, {"MXU": 4}), (9, (0,), 2, {"MXU": 4}))
    with pytest.raises(ChangedError, match=message):
        runs.of(schedule, 1)


def test_meetings_of_tiles_and_groups_cover_every_row_once() -> None:
    spec = SPECS["fine_grained_64"]
    sizes, tiles = zipf_sizes(spec), -(-spec.R // 512)
    plan = visits(jnp.asarray(sizes), spec.R, 512, visit_empty=False)
    met = meetings(shared(plan, 512, 1, tiles, 2), 512, 1)
    assert met.full_P.sum() * 512 + met.pieces_P.sum() == spec.R
    work = met.full_P * 512 + met.pieces_P
    assert work.max() <= 0.55 * spec.R  # the two parts share it
    assert len(np.unique(np.stack([plan.tile_M, plan.group_M]), axis=1).T) == num_visits(sizes, 512)


def test_visits_of_a_group_that_fills_two_tiles() -> None:
    sizes = np.array([0, 1024, 0])
    met = meetings(visits(jnp.asarray(sizes), 1024, 512, visit_empty=False), 512, 128)
    assert (met.full_P, met.pieces_P, num_visits(sizes, 512)) == (2, 0, 2)
    assert num_visits([3, 0, 6], 4) == 4
