# SPDX-License-Identifier: Apache-2.0
"""Counting a whole program: every operation, as often as its loop turns."""

from pathlib import Path

import pytest

from jaxlm.bench.xla_kernels import Program, UncountableError, array_bytes, count
from tests.jaxlm.bench.programs import dump

BLOCKS = 'backend_config={"window_config":{"iteration_bounds":["5","2"]}}'
PROGRAM = f"""HloModule jit_f

%sliced (p.0: f32[8,128], p.1: s32[]) -> f32[1,128] {{
  %p.0 = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %p.1 = s32[]{{:T(128)}} parameter(1)
  ROOT %d = f32[1,128]{{1,0:T(8,128)}} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={{1,128}}
}}

%body (t: (f32[8,128])) -> (f32[8,128]) {{
  %t = (f32[8,128]{{1,0}}) parameter(0)
  %x = f32[8,128]{{1,0}} get-tuple-element(%t), index=0
  %i = s32[] constant(0)
  ROOT %fusion.2 = f32[1,128]{{1,0:T(8,128)}} fusion(%x, %i), kind=kLoop, calls=%sliced, {BLOCKS}
}}

%condition (t.1: (f32[8,128])) -> pred[] {{
  %t.1 = (f32[8,128]{{1,0}}) parameter(0)
  ROOT %n = s32[] constant(3)
}}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {{
  %a = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %copy-start = (f32[8,128]{{1,0:T(8,128)S(1)}}, f32[8,128]{{1,0:T(8,128)}}) copy-start(%a)
  %copy-done = f32[8,128]{{1,0:T(8,128)S(1)}} copy-done(%copy-start)
  %fusion.1 = f32[8,128]{{1,0:T(8,128)}} fusion(%copy-done), kind=kLoop, calls=%c, {BLOCKS}
  %w = (f32[8,128]{{1,0}}) tuple(%fusion.1)
  ROOT %while = (f32[8,128]{{1,0}}) while(%w), condition=%condition, body=%body
}}
"""


def test_bodies_of_loops_count_as_often_as_they_turn(tmp_path: Path) -> None:
    dump(tmp_path, "1-fusion.1")
    dump(tmp_path, "2-fusion.2")
    total = count(PROGRAM, tmp_path, (), 0, 1, clock=1.0, bandwidth=1.0)
    # the loop turns 12 times for 10 blocks; two of them only fill and drain its pipeline
    one = 4 + 6 * 12 + 2 * 10 + 8 * 12 + 6 * 12 * 7
    assert total.cycles == 4 * one  # one operation and a loop of three turns
    # copied in: 4096; written: 4096; of each turn a slice is read, an index, and a slice written
    assert total.hbm_bytes == 4096 + 4096 + 3 * (512 + 4 + 512)
    assert total.longer_s == 4096 + max(one, 4096) + 3 * max(one, 1028)


def test_what_has_no_schedule_or_no_stated_turns_is_refused(tmp_path: Path) -> None:
    dump(tmp_path, "1-fusion.1")
    other = PROGRAM.replace('["5","2"]', '["5","3"]', 1)  # now fusion.2 has no twin
    with pytest.raises(UncountableError, match="no schedule"):
        count(other.replace("f32[1,128]", "f32[8,256]"), tmp_path, (), 0, 1, 1.0, 1.0)
    path = tmp_path / "1-fusion.1-65-packed-bundles-post-ra.txt"
    path.write_text(path.read_text().replace(", 12 /*", ", %s3 /*"))
    with pytest.raises(UncountableError, match="does not state its turns"):
        count(PROGRAM, tmp_path, (), 0, 1, 1.0, 1.0)


def test_turns_of_a_loop_come_from_its_condition() -> None:
    assert [times for _, _, times in Program(PROGRAM).operations()] == [1, 1, 3]


def test_bytes_in_vector_memory_do_not_count() -> None:
    assert array_bytes("(f32[8,128]{1,0:T(8,128)S(1)}, bf16[4,2]{1,0}, s32[])") == 16 + 4
