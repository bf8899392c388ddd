# SPDX-License-Identifier: Apache-2.0
"""Real processes, and a mesh of other axes at every restart: the same run as on one device."""

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.runs import NUM_STEPS, STOPPED, Job, column, last_step, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def on(**sizes: object) -> tuple[str, ...]:
    sizes = {"data": 1} | sizes
    sets = [f"MeshConfig.{axis} = {size!r}" for axis, size in sizes.items()]
    return *sets, "TrainConfig.sample_prompts = ()"


LEGS = [  # devices of a process, processes, mesh; four devices in all
    (4, 1, on(fsdp=2, pipeline=2)),
    (2, 2, on(context=2, pipeline=2)),  # stages in different processes
    (1, 4, on(slice=2, model=2)),
    (2, 2, on(context=2, fsdp=2, context_attention="ulysses")),
    (1, 4, on(context=4)),  # a ring of processes
]


@pytest.mark.parametrize("legs", [(0, 1, 2), (2, 3, 4)], ids=["stages", "ring"])
def test_a_run_goes_on_with_other_processes_and_other_axes(
    legs: tuple[int, ...], whole: Path, tiny_config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for leg, stop in zip(legs, (12, 30, None), strict=True):
        # four processes that share one core compile for minutes, and wait for each other by spinning
        job = Job(tiny_config, run_dir, *LEGS[leg], limit_s=600)
        code = job.run()[0] if stop is None else job.stop(stop)[0]
        assert code == (0 if stop is None else STOPPED)
    assert last_step(run_dir) == NUM_STEPS
    for name in ("train/tokens", "data/tokens_seen"):
        np.testing.assert_array_equal(column(run_dir, name), column(whole, name))
    losses, want = column(run_dir, "train/loss_nats"), column(whole, "train/loss_nats")
    np.testing.assert_allclose(losses, want, rtol=2e-5)
    assert not processes_of(run_dir)
