# SPDX-License-Identifier: Apache-2.0
"""What the dash is photographed over: real runs on real text, and a project once round the loop.

Some minutes on one core, so it is kept in .dash_cache, which `make clean` empties, and whose key signs
nothing else.  By hand: python -m tests.jaxlm.dash.material
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxlm.cli.main import main
from jaxlm.research.ablation_page import write_ablation
from jaxlm.research.desk import person
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.records import Project
from jaxlm.research.desk.report import write_report
from jaxlm.research.desk.running import run_draft
from jaxlm.research.desk.signing import KEY_VARIABLE
from jaxlm.research.runner import Means
from tests.e2e.workshop import ROOT
from tests.jaxlm.research.desk.workshop import read, yes

CACHE = ROOT / ".dash_cache"
RUNS = {
    "adamw": [],
    "muon": ['OptimConfig.name="muon"', "OptimConfig.muon_lr=0.02"],
    "lion": ['OptimConfig.name="lion"', "OptimConfig.peak_lr=8e-4"],
    "adamw-lr-0.3": ["OptimConfig.peak_lr=0.3", "OptimConfig.clip_norm=None"],
}
ASKED = {
    "muon": {"OptimConfig.name": "'muon'", "OptimConfig.muon_lr": "0.02"},
    "no weight decay": {"OptimConfig.weight_decay": "0.0"},
}
WAITING = {
    "muon, slower": {"OptimConfig.name": "'muon'", "OptimConfig.muon_lr": "0.01"},
    "query-key norm": {"ModelConfig.qk_norm": "True"},
}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """There, with its own key."""
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = str(folder / "approval.key")
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        if before is None:
            del os.environ[KEY_VARIABLE]
        else:
            os.environ[KEY_VARIABLE] = before


def build(folder: Path = CACHE) -> Path:
    """Makes what is not there yet."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "configs" / "idea_bank.gin", folder)
    with inside(folder):
        for name, settings in RUNS.items():
            if not Path("runs", name, "summary.json").exists():
                overrides = [word for text in settings for word in ("--set", text)]
                assert main(["train", "idea_bank.gin", *overrides, "--run", f"runs/{name}"]) == 0
        if not Path("research", "report.html").exists():
            _go_round(desk_here())
    return folder


def desk_here() -> Desk:
    return Desk(Path("research"), read, "rules", [Path("runs")])


def _go_round(desk: Desk) -> None:
    if not desk.ledger.path.exists():
        limits = {"max_flops": 3e13, "max_usd": 0.0, "max_hours": 100.0}
        project = Project(config=("idea_bank.gin",), overrides=(), promote=(), **limits)
        person.begin(desk, project)
        _drafted(desk, ASKED, "one of these trains the tiny model better")
    draft = next(iter(desk.standing().drafts))
    if desk.standing().states[draft] == "checked":
        person.approve(desk, draft, yes)
    stages = run_draft(desk, draft, Means(project=desk.project, progress=lambda *news: None))
    write_ablation(stages, desk.project)
    _drafted(desk, WAITING, "Muon's gain holds at half the rate, or with normalised queries")
    write_report(desk, desk.project)


def _drafted(desk: Desk, asked: dict[str, dict[str, str]], hypothesis: str) -> None:
    made = [
        desk.propose(title, changes, "the idea bank", -0.05, -0.15, 0.02).id
        for title, changes in asked.items()
    ]
    desk.draft(made, hypothesis, seeds=3, smallest_effect=0.01)


if __name__ == "__main__":
    build()
