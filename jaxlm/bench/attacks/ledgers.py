# SPDX-License-Identifier: Apache-2.0
"""Ledgers that tell something else than what happened: edited, cut, re-ordered; with hashes that fit."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxlm.bench.attacks.attack import Attack, shown
from jaxlm.bench.attacks.world import World
from jaxlm.core.canonical import canonical_json, file_sha256, write_json_atomic
from jaxlm.data.prepare import prepare
from jaxlm.research.campaign import conclude
from jaxlm.research.jobs import JobRun
from jaxlm.research.ledger import FIRST, Ledger, Record, seal
from jaxlm.research.plan import Plan, Rules, Seeds, Setting, plan
from jaxlm.research.records import RunRecord, body, protocol_from
from jaxlm.research.verify import verify
from jaxlm.train import sealing

Records = list[Record]
Change = Callable[[Records], Records]
ARM = "lower b1"


def attacks(world: World) -> Iterator[Attack]:
    for name, (change, why) in FORGERIES.items():
        yield Attack(target="the ledger", name=name, run=partial(_rewritten, world, change, why))
    for name, (damage, why) in DAMAGE.items():
        yield Attack(target="the ledger", name=name, run=partial(_damaged, world, damage, why))


def campaign(world: World, folder: Path) -> Ledger:
    """A screen of one arm, three seeds: recorded, judged and reviewed, with directories that fit.

    Losses come from a formula; nothing was trained.
    """
    project = folder / "research"
    load = lambda *texts: world.load([world.gin], texts)
    settings = [
        Setting("baseline", {}, load()),
        Setting(ARM, {"OptimConfig.b1": "0.8"}, load("OptimConfig.b1 = 0.8")),
    ]
    planned = plan(settings, Seeds(count=3), Rules(), project)
    ledger = Ledger(project / "ledger.jsonl")
    ledger.append("protocol", body(planned.protocol))
    ledger.append("approval", {"protocol": planned.protocol.id, "by": "somebody"})
    runs = [_recorded(planned, arm, seed, ledger, project) for arm, seed in planned.protocol.runs]
    conclude(planned.protocol, runs, ledger)
    return ledger


def _recorded(planned: Plan, arm: str, seed: int, ledger: Ledger, project: Path) -> RunRecord:
    run = planned.runs[arm, seed]
    bpb = 3.0 + 0.01 * seed - (0.1 + 0.001 * seed) * (arm == ARM)
    found = _made(run, bpb, planned.protocol.evaluator)
    record = RunRecord(
        protocol=planned.protocol.id, arm=arm, seed=seed, run_id=run.run_id,
        directory=str(run.directory.relative_to(project)), status="completed", metric=bpb,
        evaluation=found, is_reused=False,
    )  # fmt: skip
    ledger.append("run", body(record))
    return record


def _made(run: JobRun, bpb: float, evaluator: str) -> dict[str, Any]:
    """A run's directory, as far as `verify` looks, and its evaluation."""
    steps = run.config.train.num_steps
    data_id = prepare(run.config.data).data_id
    checkpoint = run.directory / "checkpoints" / f"{steps:08d}"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "state" / "params").write_text(run.run_id)
    manifest = checkpoint / sealing.MANIFEST
    sealed = sealing.manifest(checkpoint, leaves=["params"], step=steps, data_id=data_id)
    write_json_atomic(manifest, sealed)
    write_json_atomic(run.directory / "config.json", run.config)
    write_json_atomic(run.directory / "env.json", {"data_id": data_id})
    return {
        "eval/bpb": bpb, "eval/bytes": 100, "run_id": run.run_id, "step": steps,
        "checkpoint_sha256": file_sha256(manifest), "evaluator": evaluator,
    }  # fmt: skip


def forge(ledger: Ledger, change: Change) -> None:
    """Rewrites the ledger with a chain of hashes that fits, and its head: what a clever cheat does."""
    previous, lines = FIRST, []
    for seq, record in enumerate(change(list(ledger))):
        sealed = seal(seq, record.time, record.kind, record.body, previous)
        previous = sealed.hash
        lines.append(canonical_json(sealed) + "\n")
    ledger.path.write_text("".join(lines))
    ledger.head_path.write_text(json.dumps({"records": len(lines), "hash": previous}))


def edited(record: Record, **changes: Any) -> Record:
    """With other fields in its body."""
    return dataclasses.replace(record, body=record.body | changes)


def _honest(world: World, folder: Path) -> Ledger:
    ledger = campaign(world, folder)
    if problems := verify(ledger, ledger.path.parent):
        raise ValueError(f"an honest ledger does not hold: {problems[0]}")
    return ledger


def _rewritten(world: World, change: Change, why: str, folder: Path) -> str:
    ledger = _honest(world, folder)
    forge(ledger, change)
    return f"verify: {shown(verify(ledger, ledger.path.parent), why)}"


def _damaged(world: World, damage: Callable[[Ledger], None], why: str, folder: Path) -> str:
    ledger = _honest(world, folder)
    damage(ledger)
    return f"verify: {shown(verify(ledger, ledger.path.parent), why)}"


def _at(records: Records, arm: str, seed: int) -> int:
    """Place of a run."""
    return next(
        i
        for i, r in enumerate(records)
        if r.kind == "run" and (r.body["arm"], r.body["seed"]) == (arm, seed)
    )


def _run(records: Records, arm: str, seed: int, **changes: Any) -> Records:
    """With other fields of a run."""
    i = _at(records, arm, seed)
    return [*records[:i], edited(records[i], **changes), *records[i + 1 :]]


def _other_metric(records: Records) -> Records:
    """Better where it is read, not where it was measured."""
    return _run(records, ARM, 1, metric=2.0)


def _better(records: Records) -> Records:
    """Better everywhere that it stands."""
    found = records[_at(records, ARM, 1)].body["evaluation"]
    return _run(records, ARM, 1, metric=2.0, evaluation=found | {"eval/bpb": 2.0})


def _stale(records: Records) -> Records:
    """The evaluation of the run before, under this one's name."""
    before = records[_at(records, ARM, 0)].body
    return _run(records, ARM, 1, metric=before["metric"], evaluation=before["evaluation"])


def _other_evaluator(records: Records) -> Records:
    found = records[_at(records, ARM, 1)].body["evaluation"]
    return _run(records, ARM, 1, evaluation=found | {"evaluator": "e" * 64})


def _shrunk(records: Records) -> Records:
    """One arm judged on less text: its review must call itself exploratory."""
    changed = records
    for seed in (0, 1, 2):
        found = records[_at(records, ARM, seed)].body["evaluation"]
        changed = _run(changed, ARM, seed, evaluation=found | {"eval/bytes": 50})
    return changed


def _added_seed(records: Records) -> Records:
    i = _at(records, ARM, 2)
    return [*records[:i], edited(records[i], seed=7), *records[i:]]


def _best_of_two(records: Records) -> Records:
    i = _at(records, ARM, 2)
    return [*records[:i], records[i], *records[i:]]


def _without(records: Records, i: int) -> Records:
    return [*records[:i], *records[i + 1 :]]


def _verdict(records: Records) -> Records:
    last = records[-1]
    told = last.body["verdicts"][0] | {"effect": -1.0}
    return [*records[:-1], edited(last, verdicts=[told])]


def _number_of_a_failure(records: Records) -> Records:
    return _run(records, ARM, 1, status="diverged", evaluation=None)


def _hidden_failure(records: Records) -> Records:
    """A run that diverged is left out, and the protocol says fewer seeds: its id with it."""
    return [edited(records[0], seeds=[0, 1]), *_without(records[1:], _at(records, ARM, 2) - 1)]


def _other_alpha(records: Records) -> Records:
    """A protocol that asks less, under an id that fits; its runs still name the one before."""
    plain = records[0].body | {"alpha": 0.5}
    return [edited(records[0], **plain | {"id": protocol_from(plain).id}), *records[1:]]


FORGERIES: dict[str, tuple[Change, str]] = {
    "edited protocol": (lambda rs: [edited(rs[0], alpha=0.5), *rs[1:]], "the protocol was edited"),
    "protocol exchanged": (_other_alpha, "of a protocol that was not fixed before it"),
    "protocol after its runs": (lambda rs: [*rs[1:], rs[0]], "was not fixed before it"),
    "no approval": (lambda rs: _without(rs, 1), "nobody approved"),
    "printed fake result": (_other_metric, "is not its evaluation's"),
    "better number": (_better, "its verdicts do not follow from the runs"),
    "stale result reused": (_stale, "the evaluation is of another run"),
    "judged by another evaluator": (_other_evaluator, "judged by another evaluator"),
    "shrunk evaluation": (_shrunk, "its verdicts do not follow from the runs"),
    "metric of a run that failed": (_number_of_a_failure, "status 'diverged' with metric"),
    "seed shopping: an added seed": (_added_seed, "with seed 7 is not in the protocol"),
    "seed shopping: a seed run again": (_best_of_two, "was recorded before"),
    "seed shopping: a dropped run": (
        lambda rs: _without(rs, _at(rs, ARM, 2)), "review before all runs",
    ),
    "seed shopping: a seed less in the protocol": (_hidden_failure, "the protocol was edited"),
    "other verdict": (_verdict, "its verdicts do not follow from the runs"),
    "exploratory label": (
        lambda rs: [*rs[:-1], edited(rs[-1], departures=["something"])], "do not follow",
    ),
}  # fmt: skip


def _flip(ledger: Ledger) -> None:
    """One digit of one loss, as an editor would."""
    text = ledger.path.read_text()
    ledger.path.write_text(text.replace('"metric":3.01', '"metric":2.01', 1))


def _cut(which: int) -> Callable[[Ledger], None]:
    def cut(ledger: Ledger) -> None:
        lines = ledger.path.read_bytes().splitlines(keepends=True)
        del lines[which]
        ledger.path.write_bytes(b"".join(lines))

    return cut


def _swap(ledger: Ledger) -> None:
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    lines[2], lines[3] = lines[3], lines[2]
    ledger.path.write_bytes(b"".join(lines))


def _directories(ledger: Ledger) -> list[Path]:
    return [ledger.path.parent / run["directory"] for run in ledger.of_kind("run")]


def _earlier_directory(ledger: Ledger) -> None:
    """An earlier run's files where the last one's were."""
    first, *_, last = _directories(ledger)
    shutil.rmtree(last)
    shutil.copytree(first, last)


def _other_checkpoint(ledger: Ledger) -> None:
    (manifest,) = _directories(ledger)[-1].glob("checkpoints/*/manifest.json")
    manifest.write_text('{"other": 1}')


def _other_config(ledger: Ledger) -> None:
    """A run that made other updates than its record says."""
    path = _directories(ledger)[-1] / "config.json"
    config = json.loads(path.read_text())
    config["train"]["num_steps"] += 1
    path.write_text(json.dumps(config))


DAMAGE: dict[str, tuple[Callable[[Ledger], None], str]] = {
    "edited ledger": (_flip, "does not match its hash"),
    "a record dropped": (_cut(4), "does not follow the record before it"),
    "the tail dropped": (_cut(-1), "the ledger has"),
    "records re-ordered": (_swap, "does not follow the record before it"),
    "an earlier run's directory": (_earlier_directory, "are not those of run"),
    "a checkpoint that was not judged": (_other_checkpoint, "is not the one that was judged"),
    "extra steps under a run's name": (_other_config, "are not those of run"),
}
