# SPDX-License-Identifier: Apache-2.0
"""Rows survive: bits, crashes at any byte, resumed runs."""

import resource
import struct

import pytest

from jaxlm.core.errors import RunError
from jaxlm.telemetry.writer import FILE_NAME, JsonlWriter, latest_rows, read_rows


def _train(step, loss=1.0):
    return {"kind": "train", "step": step, "train/loss_nats": loss}


def _write(run_dir, *rows):
    writer = JsonlWriter(run_dir)
    for row in rows:
        writer.write(row)
    writer.close()


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, float("inf"), float("nan")]
)
def test_a_number_comes_back_with_the_same_bits(tmp_path, value):
    """Resume is checked on these bits."""
    _write(tmp_path, _train(1, value))
    (row,) = read_rows(tmp_path)
    assert struct.pack("d", row["train/loss_nats"]) == struct.pack("d", value)


def test_a_row_can_be_read_before_the_writer_is_closed(tmp_path):
    writer = JsonlWriter(tmp_path)
    writer.write(_train(1))
    assert list(read_rows(tmp_path)) == [_train(1)]
    writer.close()


def test_an_unknown_metric_is_refused_and_leaves_no_trace(tmp_path):
    writer = JsonlWriter(tmp_path)
    with pytest.raises(KeyError):
        writer.write({"kind": "train", "step": 1, "train/los_nats": 1.0})
    writer.write(_train(2))
    writer.close()
    assert list(read_rows(tmp_path)) == [_train(2)]


def test_a_kill_at_any_byte_costs_at_most_the_row_being_written(tmp_path):
    rows = [_train(1), {"kind": "event", "step": 1, "event": "saved", "detail": "ü\n"}, _train(2)]
    _write(tmp_path, *rows)
    whole = (tmp_path / FILE_NAME).read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / FILE_NAME).write_bytes(whole[:cut])
        complete = rows[: whole[:cut].count(b"\n")]
        assert list(read_rows(tmp_path)) == complete
        _write(tmp_path, _train(9))
        assert list(read_rows(tmp_path)) == [*complete, _train(9)]


def test_rows_are_chosen_by_kind_in_the_order_written(tmp_path):
    rows = [_train(1), {"kind": "eval", "step": 1, "eval/bpb@web": 2.0}, _train(2)]
    _write(tmp_path, *rows)
    assert list(read_rows(tmp_path, "train")) == [rows[0], rows[2]]
    assert list(read_rows(tmp_path, "eval")) == [rows[1]]


def test_of_a_step_written_twice_the_last_row_counts(tmp_path):
    """Killed after 3, resumed from 1, killed again after 2."""
    _write(tmp_path, _train(1, 1.0), _train(2, 2.0), _train(3, 3.0))
    _write(tmp_path, {"kind": "event", "step": 1, "event": "resumed"}, _train(2, 2.5))
    losses = [(row["step"], row["train/loss_nats"]) for row in latest_rows(tmp_path, "train")]
    assert losses == [(1, 1.0), (2, 2.5), (3, 3.0)]


def test_a_full_disk_is_one_clear_line_and_costs_only_the_row_being_written(tmp_path):
    """The limit on the size of a file stands in for the disk."""
    writer = JsonlWriter(tmp_path)
    writer.write(_train(1))
    size = (tmp_path / FILE_NAME).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(RunError, match="cannot write .*telemetry.jsonl.*make room"):
            writer.write(_train(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        writer.close()
    assert (tmp_path / FILE_NAME).stat().st_size == size + 10, "a part of the row was taken"
    _write(tmp_path, _train(2))
    assert list(read_rows(tmp_path)) == [_train(1), _train(2)]


def test_a_directory_without_telemetry_has_no_rows(tmp_path):
    assert list(read_rows(tmp_path)) == []
