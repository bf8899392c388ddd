# SPDX-License-Identifier: Apache-2.0
"""Claude's seat through the real SDK and a real socket; only the model itself is scripted."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxlm.cli.main import main
from jaxlm.core.errors import RunError
from jaxlm.research.desk import gates
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.records import Seat
from jaxlm.research.desk.signing import read_key
from tests.e2e.workshop import furnish
from tests.jaxlm.research.desk.workshop import begun
from tests.jaxlm.research.seats.provider import Provider, Reply, error, text, tool

claude = pytest.importorskip("jaxlm.research.seats.claude")
SEAT = Seat(model="claude-test", max_tokens=500, max_turns=6)
CHANGE = {
    "title": "less momentum", "changes": {"OptimConfig.b1": "0.8"}, "why": "short runs",
    "effect": -0.01, "low": -0.03, "high": 0.01,
}  # fmt: skip


def sit(desk: Desk, replies: Sequence[Reply], seat: Seat = SEAT):
    provider, said, waits = Provider(replies), [], []
    with provider.client() as client:
        ended = claude.sit(desk, "propose", seat, said.append, client=client, wait=waits.append)
    return ended, provider, "".join(said), waits


def calls(desk: Desk) -> list[dict]:
    return desk.ledger.of_kind("call")


def test_it_looks_proposes_and_drafts(tmp_path: Path) -> None:
    desk = begun(tmp_path, "claude-test")
    proposal = begun_id(desk)
    script = [tool("status"), tool("ideas"), tool("propose", **CHANGE),
              tool("draft", proposals=[proposal[:8]], hypothesis="it helps"), text("Done.")]  # fmt: skip
    ended, provider, said, _ = sit(desk, script)
    assert (ended.stop, ended.text, ended.calls) == ("end_turn", "Done.", 5)
    assert said == "Done."
    (drafted,) = desk.standing().states.values()
    assert drafted == "checked"  # it waits for a person
    assert [c["status"] for c in calls(desk)] == ["reserved", "completed"] * 5
    results = [m["content"][0] for m in provider.requests[-1]["messages"] if m["role"] == "user"][
        1:
    ]
    answers = [json.loads(r["content"]) for r in results]
    assert answers[0]["flops_left"] == 1e12
    assert answers[2]["id"] == proposal
    assert answers[3]["state"] == "checked"
    assert len(list(Path("research/calls").iterdir())) == 5


def begun_id(desk: Desk) -> str:
    """The id that CHANGE gets: by the hash of what it says."""
    from jaxlm.research.desk import drafting

    predicted = (CHANGE["effect"], CHANGE["low"], CHANGE["high"])
    return drafting.propose(desk, CHANGE["title"], CHANGE["changes"], CHANGE["why"], predicted)[
        0
    ].id


def test_what_it_says_streams_as_it_is_but_steers_no_terminal(tmp_path: Path) -> None:
    """In pieces that begin and end anywhere: blanks stay, control characters do not."""
    words = "1. a  change of one field,\n\n   and \x1b]0;owned\x07 its\treason"
    *_, said, _ = sit(begun(tmp_path), [text(words)])
    assert said == "1. a  change of one field,\n\n   and �]0;owned� its    reason"


def test_costs_are_those_of_the_usage_and_sum_up(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    usage = {
        "input_tokens": 1000,
        "cache_read_input_tokens": 10_000,
        "cache_creation_input_tokens": 400,
    }
    ended, *_ = sit(desk, [text("a", usage=usage)])
    want = (1000 + 0.1 * 10_000 + 1.25 * 400) * 5e-6 + 50 * 25e-6
    assert ended.usd == pytest.approx(want)
    assert desk.standing().usd == pytest.approx(want)


FAILURES: dict[str, Reply] = {
    "429": error(429, "rate_limit_error", retry_after="7"),
    "500": error(500, "api_error"),
    "529": error(529, "overloaded_error"),
    "cut before any text": text("lost words", cut_after=1),
    "cut in the text": text("lost words", cut_after=3),
    "cut before the end": text("lost words", cut_after=-1),
    "garbage": text("lost words", garbage="{not json"),
    "wrong shape": text("lost words", garbage='{"type": "message_start", "message": 7}'),
    "too long": text("x" * 9000),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_call_is_logged_and_made_again(tmp_path: Path, name: str) -> None:
    desk = begun(tmp_path)
    ended, provider, said, waits = sit(desk, [FAILURES[name], text("Done.")])
    assert ended.stop == "end_turn"
    assert [c["status"] for c in calls(desk)] == ["reserved", "failed", "reserved", "completed"]
    assert provider.requests[0] == provider.requests[1]
    assert waits == [7.0 if name == "429" else 1.0]
    is_free = name in ("429", "500", "529")
    assert (calls(desk)[1]["usd"] == 0) == is_free  # a stream that was cut may have been charged
    assert "the call failed" in said


def test_half_a_tool_call_is_answered_with_its_mistake(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    half = {**tool("propose", **CHANGE), "partial_json": '{"title": "a'}
    ended, provider, *_ = sit(desk, [half, text("Done.")])
    assert provider.requests[1]["messages"][-1]["content"][0]["is_error"]
    assert ended.stop == "end_turn"
    assert desk.ledger.of_kind("proposal") == []


def test_after_some_tries_it_ends_in_one_line(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    with pytest.raises(RunError, match="could not be reached in 4 tries"):
        sit(desk, [error(529, "overloaded_error")] * 4)
    assert len(calls(desk)) == 8


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "authentication_error"), (400, "invalid_request_error")]
)
def test_a_refused_request_is_not_made_again(tmp_path: Path, status: int, kind: str) -> None:
    desk = begun(tmp_path)
    with pytest.raises(RunError, match=f"refused the call: .*{kind}"):
        sit(desk, [error(status, kind)])
    assert [c["status"] for c in calls(desk)] == ["reserved", "failed"]


def test_refusals_cut_replies_and_too_many_turns_end_the_task(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    assert sit(desk, [text("I can not.", stop="refusal")])[0].stop == "refusal"
    ended, provider, *_ = sit(desk, [text("half", stop="max_tokens"), text("whole")])
    assert ended.text == "whole"
    assert "go on" in provider.requests[1]["messages"][-1]["content"]
    assert sit(desk, [tool("status")] * 6)[0].stop == "turns"


def test_a_call_that_could_break_the_budget_is_never_sent(tmp_path: Path) -> None:
    desk = begun(tmp_path, max_usd=0.05)
    with pytest.raises(RunError, match="call may cost .* USD; the project has"):
        sit(desk, [tool("status")] * 6)
    assert desk.standing().usd <= 0.05
    provider = Provider([text("Done.")])
    with provider.client() as client, pytest.raises(RunError, match="may cost"):
        claude.sit(begun(tmp_path, max_usd=0.0), "x", SEAT, print, client=client)
    assert provider.requests == []


def test_a_reservation_that_nobody_settled_stays_spent(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    ended, *_ = sit(desk, [text("a")])
    records = desk.records()[:-1]  # as after a SIGKILL between reply and record
    assert gates.fold(records, read_key())[0].usd > ended.usd


BAD_TOOLS = {
    "approve": {"draft": "abcdef"}, "adopt": {"draft": "abcdef", "arm": "x"}, "bash": {"command": "id"},
    "run": {"draft": "abcdef"}, "propose": {"title": 3}, "curve": {"run": "../../etc/passwd"},
    "diagnose": {"run": "/etc"}, "log": {"last": "all"},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOOLS)
def test_a_call_of_a_tool_that_cannot_be_answers_with_the_mistake(
    tmp_path: Path, name: str
) -> None:
    desk = begun(tmp_path)
    before = len(desk.records())
    _, provider, *_ = sit(desk, [tool(name, **BAD_TOOLS[name]), text("Done.")])
    (result,) = provider.requests[1]["messages"][-1]["content"]
    assert result["is_error"]
    assert len(result["content"].splitlines()) == 1
    assert len(desk.records()) == before + 4  # two calls, nothing else


@pytest.mark.parametrize(
    "changes",
    [
        {"DataConfig.valid_frac": "0.5"}, {"TrainConfig.seed": "3"}, {"TrainConfig.eval_batches": "1"},
        {"DataConfig.corpora": "()"}, {"OptimConfig.peak_lr": "1e-3\ninclude 'secret.gin'"},
        {"OptimConfig.peak_lr": "@OptimConfig()"}, {"OptimConfig.peak_lr": "%lr"},
        {"TokenizerConfig.path": "'/etc/passwd'"}, {"OptimConfig.peak_lr = 1\nTrainConfig.seed": "1"},
        {"DataConfig.cache_dir": "'/tmp'"}, {"MeshConfig.data": "1"}, {},
    ],
)  # fmt: skip
def test_what_would_change_the_question_cannot_be_proposed(tmp_path: Path, changes: dict) -> None:
    desk = begun(tmp_path)
    _, provider, *_ = sit(desk, [tool("propose", **{**CHANGE, "changes": changes}), text("Done.")])
    assert provider.requests[1]["messages"][-1]["content"][0]["is_error"]
    assert desk.ledger.of_kind("proposal") == []


def test_an_arm_that_buys_its_gain_is_refused(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    longer = desk.propose("longer", {"TrainConfig.num_steps": "8"}, "more", -0.1, -0.2, 0.0).id
    found = desk.draft([longer], "more helps")
    assert found.state == "refused"
    assert "costs 2.00 of the baseline's FLOPs" in found.problems[0]


def test_the_key_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-ant-very-secret-0123456789"
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    desk = begun(tmp_path)
    script = [text(f"the key is {key}", cut_after=3), text(f"the key is {key}", stop="end_turn")]
    provider = Provider(script)
    with provider.client(key) as client:
        claude.sit(desk, "x", SEAT, lambda words: None, client=client, wait=lambda s: None)
    assert key in str(provider.headers[0])  # it reached the provider, and only that
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in files if key.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("", ("claude-haiku-5-5", 1.0, 5.0)), ("--usd-per-mtok 2,6", ("claude-haiku-5-5", 2.0, 6.0)),
        ("--model other --usd-per-mtok 2,6", ("other", 2.0, 6.0)), ("--model other", None),
    ],
)  # fmt: skip
def test_the_project_says_which_model_sits_there_and_at_what_price(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    want: tuple[str, float, float] | None,
) -> None:
    furnish(tmp_path)
    begin = "init base.gin --max-flops 1e12 --model claude-haiku-5-5 --usd-per-mtok 1,5"
    assert main(["research", *begin.split()]) == 0
    seats: list[Seat] = []
    monkeypatch.setattr(
        claude,
        "sit",
        lambda desk, task, seat, say: seats.append(seat) or claude.Ended("", "", 0, 0),
    )
    code = main(["research", "propose", "--with", "claude", *words.split()])
    got = [(s.model, s.usd_per_mtok_in, s.usd_per_mtok_out) for s in seats]
    assert (code, got) == ((0, [want]) if want else (2, []))


def test_without_a_key_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in claude.KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception, match="--with claude needs ANTHROPIC_API_KEY"):
        claude.sit(begun(tmp_path), "x", SEAT, print)


def test_waits_grow(tmp_path: Path) -> None:
    desk = begun(tmp_path)
    replies = [*itertools.repeat(error(500, "api_error"), 3), text("Done.")]
    assert sit(desk, replies)[3] == [1.0, 2.0, 4.0]
