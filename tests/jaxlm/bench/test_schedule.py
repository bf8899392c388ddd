# SPDX-License-Identifier: Apache-2.0
"""Reading a schedule: a program written by hand, whose cycles can be counted on fingers."""

from pathlib import Path

import pytest

from jaxlm.bench.attention_kernels import SHAPES, segment_ids
from jaxlm.bench.schedule import read_exactly, read_schedule, read_schedules
from tests.jaxlm.bench.programs import dump


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
    assert schedule.bounds == {2: 12, 10: 7}


def test_the_newest_program_of_a_name_is_read_and_an_absent_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'kernel'"):
        read_schedule(tmp_path, "kernel")
    dump(tmp_path, "1-other.1")
    with pytest.raises(FileNotFoundError, match="'kernel'"):
        read_schedule(tmp_path, "kernel")


def test_programs_of_a_name_are_told_apart(tmp_path: Path) -> None:
    dump(tmp_path, "1-kernel.1")
    dump(tmp_path, "2-kernel.10")
    assert len(read_schedules(tmp_path, "kernel")) == 2
    assert read_exactly(tmp_path, "kernel.1") is not None
    assert read_exactly(tmp_path, "kernel") is None


def test_documents_of_a_packed_shape_fill_the_row_and_never_come_back() -> None:
    ids = segment_ids(SHAPES["documents_8k"])
    assert ids is not None and ids.shape == (1, 8192)
    assert (ids[:, 1:] - ids[:, :-1]).min() >= 0
    assert 4 < ids.max() < 40
