# SPDX-License-Identifier: Apache-2.0
"""The desk: every step that the loop's seats may take, each a typed method, and no others.

    read     anybody may look
    enqueue  leaves a record that waits for a person, or for the program's own check
    gated    runs what a person approved, and nothing else

The command line, the MCP server (seats/server.py) and Claude's seat (seats/claude.py) offer these
same methods.  What only a person does (approve, refuse, adopt, resume) is not here: person.py.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from jaxlm.config import RunConfig
from jaxlm.core.canonical import to_jsonable
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.desk import drafting, fields, gates, reading, reviews
from jaxlm.research.desk.quoting import plain, quoted
from jaxlm.research.desk.records import Draft, Proposal
from jaxlm.research.desk.signing import read_key
from jaxlm.research.desk.views import (
    Curve,
    DraftView,
    FieldView,
    FindingView,
    IdeaView,
    ProposalView,
    RecordView,
    ReviewView,
    RunView,
    Said,
    SourceView,
    StatusView,
)  # fmt: skip
from jaxlm.research.ledger import Ledger, Record
from jaxlm.research.patch.diff import NOTHING, PATHS, changed_files, meaning, patch_id
from jaxlm.research.readable import line
from jaxlm.research.records import PATCH

Load = Callable[[Sequence[str], Sequence[str]], RunConfig]  # gin files and overrides
Kind = Literal["read", "enqueue", "gated"]
if TYPE_CHECKING:
    from jaxlm.research.runner import Means

F = TypeVar("F", bound=Callable[..., Any])
MOST_RECORDS = 200


def verb(kind: Kind) -> Callable[[F], F]:
    def mark(method: F) -> F:
        method.kind = kind  # type: ignore[attr-defined]
        return method

    return mark


class Desk:
    """One project's desk, as one seat sees it.

    load:  reads gin; given by the command line, the only one that knows gin
    runs:  folders of run directories besides the project's own
    seat:  who sits here, for the records: "rules", a model's id, a person's name
    means: with which approved drafts are run; None: this desk runs nothing
    """

    def __init__(
        self, project: Path, load: Load, seat: str, runs: Sequence[Path] = (),
        means: "Means | None" = None,
    ) -> None:  # fmt: skip
        self.project = project
        self.ledger = Ledger(project / "ledger.jsonl")
        self.load = load
        self.seat = plain(seat, 80)
        self.run_folders = (project / "runs", *runs)
        self.means = means

    # -- what stands ---------------------------------------------------------------------------

    def standing(self) -> gates.Standing:
        """Raises RunError where no project was begun."""
        found, _ = gates.fold(self.records(), read_key())
        if found.project is None:
            raise self._no_project()
        return found

    def _no_project(self) -> RunError:
        if self.ledger.of_kind("project"):
            return RunError(
                f"the project in {self.project} was signed with another key than yours; "
                "JAXLM_APPROVAL_KEY names a key's file"
            )
        return RunError(
            f"{self.project} is no project yet; `jaxlm research init CONFIG` begins one"
        )

    def records(self) -> list[Record]:
        return list(self.ledger)

    def config(self, changes: dict[str, str] | None = None, scale: Sequence[str] = ()) -> RunConfig:
        """The project's config with all that was adopted, at a larger `scale`, then `changes`."""
        standing = self.standing()
        assert standing.project is not None
        texts = list(standing.project["overrides"])
        for adoption in standing.adopted:
            texts += _statements(adoption["changes"])
        texts += scale
        if changes is not None:
            texts += _statements(changes)
        return self.load(standing.project["config"], texts)

    def paths(self) -> tuple[str, ...]:
        """What a patch may touch: as a person listed it, else a safe few."""
        standing = self.standing()
        assert standing.project is not None
        return tuple(standing.project.get("paths", PATHS))

    # -- read ----------------------------------------------------------------------------------

    @verb("read")
    def status(self) -> StatusView:
        """Limits left, adopted changes, every draft and its state, and which wait for a person."""
        return reading.status(self.standing(), time.time())

    @verb("read")
    def log(self, last: int = 30) -> list[RecordView]:
        """The newest records of the ledger, a line each."""
        records = self.records()[-max(1, min(last, MOST_RECORDS)) :]
        return [RecordView(r.seq, r.kind, quoted(line(r))) for r in records]

    @verb("read")
    def runs(self) -> list[RunView]:
        """Run directories with their status and last validation metrics."""
        return reading.runs(self.run_folders)

    @verb("read")
    def curve(self, run: str, metric: str = "eval/bpb", points: int = 40) -> Curve:
        """A metric of a run over training, thinned to a few points.

        Args:
            run: a name from `runs`
            metric: a registered name, such as train/loss_nats, eval/bpb, grad/norm_l2
            points: at most 100
        """
        return reading.curve(reading.find(self.run_folders, run), metric, min(points, 100))

    @verb("read")
    def diagnose(self, run: str) -> list[FindingView]:
        """What is wrong with a run, if anything: causes with evidence, most likely first.

        Args:
            run: a name from `runs`
        """
        return reading.diagnose(reading.find(self.run_folders, run))

    @verb("read")
    def fields(self) -> list[FieldView]:
        """Config fields that a proposal may change, with type and present value."""
        return fields.views(self.config())

    @verb("read")
    def source(self, path: str = "") -> SourceView:
        """A file that a patch may change, as it is now; without a path, which files there are.

        Args:
            path: such as jaxlm/nn/mlp.py
        """
        return reading.source(self.paths(), path)

    @verb("read")
    def ideas(self) -> list[IdeaView]:
        """Ideas of the library that apply to the project's config, the most promising first."""
        return drafting.ideas(self)

    @verb("read")
    def review(self, draft: str) -> ReviewView:
        """What came of a draft: verdicts of each stage with intervals, and what departed from its protocol.

        Args:
            draft: its id, or at least 6 first characters
        """
        name = self.find_draft(draft)
        told = reading.draft_view(self.standing(), name, [])
        stages = [reviews.view(*found) for found in reviews.stages_of(name, self.records())]
        return ReviewView(name, told.state, told.kept, told.problems, stages)

    # -- enqueue -------------------------------------------------------------------------------

    @verb("enqueue")
    def propose(
        self, title: str, changes: dict[str, str], why: str, effect: float, low: float, high: float
    ) -> ProposalView:
        """Put one change on the list, unless it was tried before.

        Args:
            title: a few words
            changes: field -> gin expression, such as {"OptimConfig.peak_lr": "2e-3"}
            why: the reason, naming findings, runs or records
            effect: expected change of the metric, negative is better
            low: lower end of an interval that holds the effect 9 times in 10
            high: its upper end
        """
        fields.statements(changes)  # a patch has a verb of its own
        proposal, repeats = drafting.propose(self, title, changes, why, (effect, low, high))
        if repeats is None:
            self.ledger.append("proposal", {"id": proposal.id, **to_jsonable(proposal)})
        return _proposal_view(proposal, repeats)

    @verb("enqueue")
    def patch(
        self, title: str, diff: str, why: str, effect: float, low: float, high: float
    ) -> ProposalView:
        """Put one change of the code on the list, with a test of it; nothing of it is run here.

        Args:
            title: a few words
            diff: unified, of files that `source` lists, and new tests tests/patches/test_NAME.py
            why: the reason, naming findings, runs or records
            effect: expected change of the metric, negative is better
            low: lower end of an interval that holds the effect 9 times in 10
            high: its upper end
        """
        files, what = changed_files(diff, self.paths()), meaning(diff)
        if what == NOTHING:
            raise ConfigError(f"the patch {plain(title, 80)!r} changes nothing that is computed")
        name = patch_id(diff)
        proposal, repeats = drafting.propose(
            self, title, {PATCH: name}, why, (effect, low, high), what
        )
        if repeats is None:
            body = {"id": name, "diff": diff, "files": files, "meaning": what, "by": self.seat}
            gates.append(self.ledger, read_key(), "patch", body)
            self.ledger.append("proposal", {"id": proposal.id, **to_jsonable(proposal)})
        return _proposal_view(proposal, repeats)

    @verb("enqueue")
    def draft(
        self, proposals: list[str], hypothesis: str, seeds: int = 4, smallest_effect: float = 0.0
    ) -> DraftView:
        """Make one question of some proposals; a program checks it, then it waits for a person.

        Args:
            proposals: their ids, or at least 6 first characters
            hypothesis: what is expected, in a sentence
            seeds: of each arm, 2 to 16
            smallest_effect: what is less, in units of the metric, is not worth keeping
        """
        return self.enter(drafting.draft(self, proposals, hypothesis, seeds, smallest_effect))

    @verb("enqueue")
    def halt(self, why: str) -> Said:
        """Turn the kill switch on: nothing starts until a person turns it off.

        Args:
            why: the reason, for the record
        """
        if not self.ledger.of_kind("project"):  # else a mistyped folder would say that it stopped
            raise self._no_project()
        self.ledger.append("halt", {"by": self.seat, "why": plain(why)})
        return Said("halted; `jaxlm research resume` goes on")

    # -- gated ---------------------------------------------------------------------------------

    @verb("gated")
    def run(self, draft: str) -> DraftView:
        """Train and judge what a draft asks, when a person has approved it.

        Args:
            draft: its id, or at least 6 first characters
        """
        from jaxlm.research.desk.running import run_draft

        found = self.find_draft(draft)
        if self.means is None:
            raise RunError("nothing is run from here; give `jaxlm research run` in a terminal")
        run_draft(self, found, self.means)
        return reading.draft_view(self.standing(), found, [])

    # -- shared --------------------------------------------------------------------------------

    def find_draft(self, prefix: str) -> str:
        """Raises ConfigError for a prefix of no draft, or of several."""
        return _one(prefix, list(self.standing().drafts), "draft")

    def find_proposals(self, prefixes: Sequence[str]) -> list[dict[str, Any]]:
        known = {p["id"]: p for p in self.ledger.of_kind("proposal")}
        return [known[_one(prefix, list(known), "proposal")] for prefix in prefixes]

    def enter(self, draft: Draft) -> DraftView:
        """Puts a draft on the list, checked, and approved where an envelope covers it."""
        problems = drafting.check(self, draft)
        if draft.id not in self.standing().drafts:
            key = read_key()
            gates.append(self.ledger, key, "draft", {"id": draft.id, **to_jsonable(draft)})
            gates.append(self.ledger, key, "check", {"draft": draft.id, "problems": problems})
        self.approve_within_envelope(draft.id)
        return reading.draft_view(self.standing(), draft.id, problems)

    def adopt_within_envelope(self, draft: str, arm: str) -> None:
        """Makes a confirmed arm part of the config.  Raises RunError where no envelope says so."""
        standing = self.standing()
        name = standing.consented.get(draft, "")
        arms = {a["name"]: a["changes"] for a in standing.drafts[draft]["arms"]}
        by = f"envelope of {standing.envelopes.get(name, {}).get('by', 'nobody')}"
        body = {"draft": draft, "arm": arm, "changes": arms[arm], "by": by, "envelope": name}
        gates.append(self.ledger, read_key(), "adoption", body)

    def approve_within_envelope(self, draft: str) -> None:
        """Records the approval that a signed envelope gives, where one covers the draft."""
        standing, now = self.standing(), time.time()
        if standing.states[draft] != "checked":
            return
        for name, envelope in standing.envelopes.items():
            if gates.outside(standing, envelope, standing.drafts[draft], now) is None:
                by = f"envelope of {envelope['by']}"
                body = {"draft": draft, "by": by, "envelope": name}
                gates.append(self.ledger, read_key(), "consent", body)
                return


def verbs(desk: Desk) -> dict[str, Callable[..., Any]]:
    """Name -> bound method, reading ones first; `kind` of each says what it may do."""
    found = [getattr(desk, name) for name in vars(Desk) if hasattr(getattr(Desk, name), "kind")]
    return {method.__name__: method for method in found}


def _statements(changes: dict[str, str]) -> list[str]:
    """Gin text of a change; a patch has none."""
    plain_changes = {field: value for field, value in changes.items() if field != PATCH}
    return fields.statements(plain_changes) if plain_changes or not changes else []


def _proposal_view(proposal: Proposal, repeats: str | None) -> ProposalView:
    p = proposal
    return ProposalView(p.id, p.title, p.changes, *p.predicted, p.flops, p.score, repeats)


def _one(prefix: str, known: Sequence[str], what: str) -> str:
    found = [name for name in known if name.startswith(prefix)] if len(prefix) >= 6 else []
    if len(found) != 1:
        raise ConfigError(
            f"{prefix[:70]!r} names {len(found) or 'no'} {what}s of {len(known)}; give 6 or more first "
            f"characters of one{': ' + ', '.join(name[:12] for name in known[-5:]) if known else ''}"
        )
    return found[0]
