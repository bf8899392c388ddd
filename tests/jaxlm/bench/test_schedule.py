# SPDX-License-Identifier: Apache-2.0
"""Reading a schedule: a program written by hand, whose cycles can be counted on fingers."""

from pathlib import Path

import pytest

from jaxlm.bench.attention_kernels import SHAPES, Runs, segment_ids
from jaxlm.bench.schedule import read_schedule

# bundles 0..1 before a loop over 2..19 (its branch at 14, five delay slots); inside it a branch
# at 3 skips 8..9, and an inner loop repeats 10..15
PROGRAM = """= control target key start
     0   :  { %s0 = inlined_call_operand.vmem [shape: s32[32]] }
   0x1   :  { %s1 = smov 0 }
   0x2 LB: > { %s2 = sadd.s32 1, %s1 }
   0x3   : > { %9 = sbr.rel (%p1) target bundleno = 10 (0xa), region = 32 ;;
   continued %s4 = sadd }
   0x8 PB: > { %v1 = vadd }
   0xa   : >> { %v2 = vmatmul }
   0xb   : >> { %10 = sbr.rel (!%p2) target bundleno = 10 (0xa), region = 2 }
  0x10   : > { %v3 = vst }
  0x13   : > { %11 = sbr.rel (!%p3) target bundleno = 2 (0x2), region = 3 }
  0x19   :  { %s9 = smov }
"""
UNITS = ("MXU, VALU, VLOAD:FILL, VSTORE:SPILL", "2 4 3 2")


def dump(folder: Path, name: str = "17-kernel.1") -> None:
    (folder / f"{name}-65-packed-bundles-post-ra.txt").write_text(PROGRAM)
    (folder / f"{name}-64-schedule-analysis_packed-bundles-post-ra.txt").write_text("other")
    rows = ["2 0 1 0" if 10 <= i < 16 else "0 1 0 0" for i in range(26)]
    text = "\n".join(["== CAPACITY:", *UNITS, "", "== UTILIZATION:", *rows, ""])
    (folder / f"{name}-68-pre-delay_hlo-static-per-bundle-utilization.txt").write_text(text)


def test_regions_lie_between_branches_and_their_targets(tmp_path: Path) -> None:
    dump(tmp_path)
    schedule = read_schedule(tmp_path, "kernel")
    found = [(r.start, r.stop, r.loops, r.num_branches) for r in schedule.regions]
    assert found == [
        (0, 2, (), 0),
        (2, 8, (2,), 0),
        (8, 10, (2,), 1),
        (10, 16, (2, 10), 0),
        (16, 24, (2,), 0),
        (24, 26, (), 0),
    ]
    assert schedule.num_bundles == 26
    assert schedule.num_spills == 6
    assert schedule.inner_loops == (10,)


def test_cycles_are_bundles_times_runs_shared_by_the_cores(tmp_path: Path) -> None:
    dump(tmp_path)
    schedule = read_schedule(tmp_path, "kernel")
    runs = Runs(steps=10, loops=(70,), products=[0], ends=4)
    # 2 + 2 outside; 6 + 2 + 8 per step; 6 per turn of the inner loop
    one, busy = schedule.cost(runs.of(schedule, cores=1))
    assert one == 4 + 16 * 10 + 6 * 70
    assert busy == pytest.approx(2 * 6 * 70 / (2 * one))
    two, _ = schedule.cost(runs.of(schedule, cores=2))
    assert two == 4 + 16 * 5 + 6 * 35


def test_the_newest_program_of_a_name_is_read_and_an_absent_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'kernel'"):
        read_schedule(tmp_path, "kernel")
    dump(tmp_path, "1-other.1")
    with pytest.raises(FileNotFoundError, match="'kernel'"):
        read_schedule(tmp_path, "kernel")


def test_documents_of_a_packed_shape_fill_the_row_and_never_come_back() -> None:
    ids = segment_ids(SHAPES["documents_8k"])
    assert ids is not None and ids.shape == (1, 8192)
    assert (ids[:, 1:] - ids[:, :-1]).min() >= 0
    assert 4 < ids.max() < 40
