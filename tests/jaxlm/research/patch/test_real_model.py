# SPDX-License-Identifier: Apache-2.0
"""A patched model that is really trained and judged behind the walls, beside the same without a patch."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from jaxlm.bench.attacks.diffs import NORM, appended
from jaxlm.bench.attacks.honest import Honest
from jaxlm.bench.attacks.world import World, furnish
from jaxlm.research.evaluator import evaluate_run
from jaxlm.research.patch.host import train_patched
from jaxlm.research.patch.judge import judge_patched
from jaxlm.research.plan import job_run
from jaxlm.research.sandbox import sandbox
from jaxlm.telemetry.display import PlainDisplay
from jaxlm.telemetry.writer import latest_rows
from jaxlm.train.session import run_training
from tests.jaxlm.research.desk.workshop import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sandbox.level().endswith("landlock"), reason="this machine lacks walls"),
]
LONG = ("TrainConfig.num_steps = 80", "TrainConfig.checkpoint_every = 80")
PEEKS = Honest(
    "sees the next token", "jaxlm/nn/embed.py",
    "        return _rows(self.table_VD, tokens_BT, self.dtype)",
    "        rows_BTD = _rows(self.table_VD, tokens_BT, self.dtype)\n"
    "        return rows_BTD + jnp.roll(rows_BTD, -1, axis=1)",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return furnish(tmp_path_factory.mktemp("real") / "world", read)


def judged(world: World, diff: str, folder: Path) -> tuple[dict[str, Any], float]:
    """What the judge says of a patched run, and the last loss that the run claims, in nats."""
    run = job_run(read([world.gin], LONG), 0, folder, diff=diff)
    run = dataclasses.replace(run, is_weaker_allowed=True)
    train_patched(run, lambda step: None)
    return judge_patched(run), _last_losses(run.directory)


def _last_losses(directory: Path) -> float:
    rows = latest_rows(directory, "train")[-10:]
    return float(sum(row["train/loss_nats"] for row in rows) / len(rows))


def test_a_patch_that_computes_the_same_is_judged_as_the_trusted_evaluator_judges(
    world: World, tmp_path: Path
) -> None:
    """Two ways to one number: columns over a pipe from the sandbox, and whole rows in this process."""
    found, last = judged(world, appended(NORM, "\nNOTHING = 1\n"), tmp_path / "patched")
    clean = job_run(read([world.gin], LONG), 0, tmp_path / "clean")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        run_training(clean.config, clean.directory, "", PlainDisplay(nowhere))
    wanted = evaluate_run(clean.directory, clean.run_id)
    assert last == pytest.approx(_last_losses(clean.directory), rel=1e-3)
    for name in ("eval/bpb", "eval/loss_nats", "eval/accuracy_frac"):
        assert found[name] == pytest.approx(wanted[name], rel=2e-3), name
    for name in ("eval/bytes", "eval/tokens", "flops", "step", "valid_sha256", "evaluator"):
        assert found.get(name) == wanted.get(name), name
    assert found["asked_twice"] > 0 and found["walls"] == sandbox.level()


def test_a_model_that_peeks_at_the_next_token_gains_nothing_by_it(
    world: World, tmp_path: Path
) -> None:
    """Its training loss falls, since there whole rows are given; at the judge's there is no next token."""
    honest, fair = judged(world, appended(NORM, "\nNOTHING = 1\n"), tmp_path / "honest")
    found, claimed = judged(world, PEEKS.diff(), tmp_path / "peeks")
    assert claimed < fair - 0.5
    assert found["eval/loss_nats"] > honest["eval/loss_nats"] - 0.05
