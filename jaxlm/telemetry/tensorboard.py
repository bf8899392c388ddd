# SPDX-License-Identifier: Apache-2.0
"""TensorBoard event files: a copy of telemetry.jsonl for those who look at it there.

Needs the extra `tensorboard`, imported only when a writer is made.
"""

import importlib.util
from pathlib import Path

from jaxlm.core.errors import ConfigError
from jaxlm.telemetry.writer import Row

FLUSH_S = 10  # between two writes to disk, by a thread of tensorboardX


def check_installed() -> None:
    """Raises ConfigError without tensorboardX."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "TrainConfig.tensorboard=True needs tensorboardX: "
            "pip install 'jaxlm[tensorboard]', or set it to False"
        )


class TensorBoardWriter:
    """A Writer: every registered metric as a scalar, every event as text."""

    def __init__(self, run_dir: Path, resumed_step: int | None = None) -> None:
        """Writes to RUN_DIR/tensorboard; what a killed process wrote after resumed_step is hidden.

        Raises ConfigError without tensorboardX.
        """
        check_installed()
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=purge_step, flush_secs=FLUSH_S
        )
        self._summary = Summary

    def write(self, row: Row) -> None:
        if row["kind"] == "event":
            self._writer.add_text(row["event"], str(row.get("detail", "")), row["step"])
            return
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if "/" in name and value is not None and not isinstance(value, list)
        ]
        # one record for the row: add_scalar would take ten times as long
        self._writer.file_writer.add_summary(self._summary(value=values), row["step"])

    def close(self) -> None:
        self._writer.close()
