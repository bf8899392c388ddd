# SPDX-License-Identifier: Apache-2.0
"""Event files hold what the rows held, read back by hand from the record format."""

import math
import struct
import sys

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.telemetry.tensorboard import TensorBoardWriter


def _events(run_dir):
    """TFRecord: u64 length, u32 checksum, the bytes, u32 checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    events = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return events


def test_every_metric_of_every_row_is_written_with_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoardWriter(tmp_path)
    writer.write({"kind": "train", "step": 7, "train/loss_nats": 2.5, "perf/mfu_frac": None})
    writer.write({"kind": "eval", "step": 8, "eval/bpb": math.nan, "eval/bpb@web": 1.5})
    writer.write({"kind": "event", "step": 9, "event": "resumed", "detail": "from 7"})
    writer.close()
    events = _events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value][:3]
    assert scalars[0] == (7, "train/loss_nats", 2.5)
    assert scalars[1][:2] == (8, "eval/bpb") and math.isnan(scalars[1][2])
    assert scalars[2] == (8, "eval/bpb@web", 1.5)
    text = events[-1].summary.value[0]
    assert events[-1].step == 9 and text.tensor.string_val == [b"from 7"]


def test_a_resumed_run_hides_what_the_killed_one_wrote_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboardX")
    TensorBoardWriter(tmp_path, resumed_step=100).close()
    starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts == [101]


def test_without_tensorboardx_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxlm\[tensorboard\]'"):
        TensorBoardWriter(tmp_path)
    assert list(tmp_path.iterdir()) == []
