# SPDX-License-Identifier: Apache-2.0
"""What earlier questions of a project say to a new one, each run counted once.

Asking again about the same runs, in other words or with another rule, is no new evidence; and runs that
are being judged do not speak for themselves.
"""

from collections.abc import Iterator, Sequence

from jaxlm.research.ledger import Record
from jaxlm.research.records import BASELINE, Protocol, RunRecord, protocol_from
from jaxlm.research.stats.noise import Noise, moderate

Pairs = dict[tuple[str, str], float]  # (run of an arm, run of its baseline) -> difference


def runs_of(protocol: Protocol, records: Sequence[Record]) -> list[RunRecord]:
    """A protocol's runs, in the order of the ledger."""
    mine = (r for r in records if r.kind == "run" and r.body["protocol"] == protocol.id)
    return [RunRecord(**record.body) for record in mine]


def run_ids(runs: Sequence[RunRecord]) -> dict[str, dict[int, str]]:
    """arm -> seed -> run id, of all arms but the baseline."""
    found: dict[str, dict[int, str]] = {}
    for run in runs:
        if run.arm != BASELINE:
            found.setdefault(run.arm, {})[run.seed] = run.run_id
    return found


def protocols_before(protocol: Protocol, records: Sequence[Record]) -> Iterator[Protocol]:
    """Those that were fixed before it, oldest first; all where it is not on the record."""
    for record in records:
        if record.kind == "protocol":
            if record.body["id"] == protocol.id:
                return
            yield protocol_from(record.body)


def known_noise(
    records: Sequence[Record], protocol: Protocol, judged: Sequence[RunRecord] = ()
) -> Noise | None:
    """Of paired differences in earlier protocols that ask the same of the same baseline's length."""
    own = {run.run_id for run in judged if run.arm != BASELINE}
    groups: list[Pairs] = []
    for earlier in protocols_before(protocol, records):
        same = ("metric", "data_id", "code")
        if earlier.search or any(getattr(earlier, n) != getattr(protocol, n) for n in same):
            continue
        if earlier.flops_per_run[BASELINE] == protocol.flops_per_run[BASELINE]:
            for pairs in _pairs(earlier, runs_of(earlier, records)):
                if not own & {run_id for run_id, _ in pairs}:
                    _add(groups, pairs)
    return moderate([list(pairs.values()) for pairs in groups])


def p_values(
    records: Sequence[Record], protocol: Protocol, judged: Sequence[RunRecord]
) -> list[float]:
    """Of other questions of the project; of those that share runs of an arm, the newest one's."""
    seen = {run.run_id for run in judged if run.arm != BASELINE}
    fixed = {r.body["id"]: r.body for r in records if r.kind == "protocol"}
    found: list[float] = []
    for review in reversed([r.body for r in records if r.kind == "review"]):
        told = {v["arm"]: v["p_value"] for v in review["verdicts"] if v.get("p_value") is not None}
        if review["protocol"] == protocol.id or not told:
            continue
        ids = run_ids(runs_of(protocol_from(fixed[review["protocol"]]), records))
        new = {arm: p for arm, p in told.items() if not seen & set(ids.get(arm, {}).values())}
        found += new.values()
        seen |= {run_id for arm in new for run_id in ids.get(arm, {}).values()}
    return found


def _pairs(protocol: Protocol, runs: Sequence[RunRecord]) -> Iterator[Pairs]:
    """Differences to the baseline on the same seed, of each arm that completed on some."""
    done = [(run, run.metric) for run in runs if run.metric is not None]
    base = {run.seed: (run.run_id, metric) for run, metric in done if run.arm == BASELINE}
    for arm in protocol.arms[1:]:
        found: Pairs = {}
        for run, metric in done:
            if run.arm == arm.name and run.seed in base:
                base_id, before = base[run.seed]
                found[run.run_id, base_id] = metric - before
        yield found


def _add(groups: list[Pairs], pairs: Pairs) -> None:
    """To the group that has some of the pairs already, or as a new one."""
    for group in groups:
        if group.keys() & pairs.keys():
            group.update(pairs)
            return
    groups.append(pairs)
