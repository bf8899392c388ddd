# SPDX-License-Identifier: Apache-2.0
"""The page is whole, self-contained and honest, whatever the run directory holds."""

import html.parser
import json
import math
import re
import time

import pytest

from jaxlm.telemetry.record import read_run
from jaxlm.telemetry.report import write_report

EVIL = "</pre><script>alert(1)</script>&\x1b[31m\ud800"
FINAL = {"eval/bpb": 1.449, "eval/loss_nats": 2.63, "eval/accuracy_frac": 0.55}
SUMMARY = {"status": "completed", "step": 300, "final": FINAL, "wall_time_s": 142.3,
           "baselines": {"stdlib": {"gzip -9": 1.95, "xz -9": 1.54}}, "tokens_per_s": 11812.0,
           "resolved": {"parameters": "2,620,416 (embedding 393,216)"}}  # fmt: skip


class _Balance(html.parser.HTMLParser):
    """Every tag closed in its order; what is loaded from anywhere; the text."""

    VOID = ("meta", "input", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if not {"style", "script"} & set(self.open) else ""


def _rows(num_steps, loss=lambda step: 8 / math.sqrt(step)):
    for step in range(1, num_steps + 1):
        yield {"kind": "train", "step": step, "train/loss_nats": loss(step), "optim/lr": 1e-3,
               "grad/norm_l2": 0.5, "update/ratio_rms": 1e-3, "perf/tokens_per_s": 11e3,
               "perf/step_time_s": 0.1, "perf/mfu_frac": 0.46, "data/tokens_seen": 1024 * step,
               "update/applied": 1}  # fmt: skip
        if step % 100 == 0:
            yield {"kind": "eval", "step": step, "eval/bpb": 1.3 + 40 / step, "eval/tokens": 9}


def _make_run(run_dir, rows=(), samples=(), **files):
    for name, value in files.items():
        (run_dir / f"{name}.json").write_text(json.dumps(value))
    for name, lines in (("telemetry", rows), ("samples", samples)):
        (run_dir / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return run_dir


def _page(run_dir, **options):
    text = write_report(run_dir, **options).read_text(encoding="utf-8")
    return text, _Balance(text)


def test_a_finished_run_shows_its_result_beside_the_compressors(tmp_path):
    _, page = _page(_make_run(tmp_path, _rows(300), summary=SUMMARY))
    for wanted in ("completed", "1.449", "5.9% below xz -9", "1.950", "1.540", "2.630", "55.0%"):
        assert wanted in page.text
    for wanted in ("2,620,416", "11.8k", "46.0%", "2m22s", "307k", "final validation"):
        assert wanted in page.text


def test_a_loss_against_the_compressor_is_called_one(tmp_path):
    summary = SUMMARY | {"final": FINAL | {"eval/bpb": 1.694}}
    assert "10.0% above xz -9" in _page(_make_run(tmp_path, summary=summary))[1].text


@pytest.mark.parametrize("status", ["diverged", "crashed", "timed_out", "preempted"])
def test_a_run_that_did_not_complete_has_no_final_value(tmp_path, status):
    summary = SUMMARY | {"status": status, "final": None}
    text, page = _page(_make_run(tmp_path, _rows(250), summary=summary))
    assert "final validation" not in page.text
    assert "validation at update 200, not final" in page.text
    assert f'<span class="pill {status}">' in text


def test_an_empty_directory_gives_a_page_that_says_so(tmp_path):
    _, page = _page(tmp_path)
    assert "unfinished" in page.text and "no data yet" in page.text


def test_the_page_loads_nothing_and_is_closed_properly(tmp_path):
    config = {"train": {"num_steps": 300}, "data": {"corpora": [{"name": "a"}]}}
    samples = [{"step": s, "prompt": "import ", "text": "os"} for s in (100, 200)]
    text, page = _page(
        _make_run(
            tmp_path, _rows(300), samples, summary=SUMMARY, config=config, env={"a": {"b": 1}}
        )
    )
    assert page.loads == []
    assert not re.search(r"https?:|@import|url\(", text)


def test_foreign_text_stays_text_wherever_it_comes_from(tmp_path):
    rows = [*_rows(100), {"kind": "event", "step": 1, "event": EVIL, "detail": EVIL}]
    rows.append({"kind": "event", "step": 1, "event": "resumed", "detail": EVIL})
    summary = SUMMARY | {"status": EVIL, "baselines": {EVIL: {EVIL: 1.5}}, "resolved": {EVIL: EVIL}}
    everywhere = {EVIL: {EVIL: EVIL}}
    samples = [{"step": 1, "prompt": EVIL, "text": EVIL}]
    text, page = _page(
        _make_run(tmp_path, rows, samples, summary=summary, config=everywhere, env=everywhere)
    )
    assert text.count("<script>") == 1 and "\x1b" not in text
    assert page.text.count("<script>alert(1)</script>") >= 10


def test_torn_and_damaged_files_cost_only_themselves(tmp_path):
    _make_run(tmp_path, _rows(100), summary=SUMMARY)
    (tmp_path / "summary.json").write_text('{"status": "comp')
    (tmp_path / "config.json").write_text("[1, 2]")
    with open(tmp_path / "telemetry.jsonl", "a") as f:
        f.write('\0\0\0\n{"kind": "train", "step"')
    _, page = _page(tmp_path)
    for name in ("summary.json", "config.json", "1 damaged lines of telemetry.jsonl"):
        assert name in page.text
    assert "update 100" in page.text


def test_what_is_not_finite_is_shown_and_breaks_no_chart(tmp_path):
    rows = list(_rows(200, loss=lambda step: math.nan if step > 150 else 8 / step))
    rows.append(rows[-2] | {"step": 201, "update/applied": 0})
    rows.append({"kind": "event", "step": 201, "event": "refused", "detail": "it is not finite"})
    rows.append({"kind": "eval", "step": 201, "eval/bpb": math.nan, "eval/loss_nats": math.inf})
    text, page = _page(_make_run(tmp_path, rows))
    assert "refused · it is not finite" in page.text
    assert not re.search(r'd="[^"]*(nan|inf)', text)


def test_a_resumed_run_counts_each_step_once(tmp_path):
    again = [{"kind": "train", "step": 50, "train/loss_nats": 99.0}]
    run = read_run(_make_run(tmp_path, [*_rows(60), *again]))
    assert [row["step"] for row in run.train] == list(range(1, 61))
    assert run.train[49]["train/loss_nats"] == 99.0


def test_changed_config_values_stand_out_and_no_others(tmp_path):
    config = {"optim": {"peak_lr": 0.1, "b1": 0.9}, "data": {"tokenizer": {"kind": "bpe"}}}
    text, _ = _page(_make_run(tmp_path, config=config), changed={"optim.b1", "data.tokenizer.kind"})
    assert re.findall(r'<tr class="changed"><th>([^<]*)', text) == ["b1", "tokenizer.kind"]


@pytest.mark.parametrize("names", [["stdlib"], ["stdlib", "web", "code"]])
def test_corpora_have_lines_of_their_own_only_when_there_are_several(tmp_path, names):
    rows = [
        {"kind": "eval", "step": s, "eval/bpb": 2.0} | {f"eval/bpb@{n}": 2.0 for n in names}
        for s in (1, 2)
    ]
    text, _ = _page(_make_run(tmp_path, rows))
    shown = set(re.findall(r'data-name="([^"]*)"', text)) - {"each", "mean", "lr"}
    assert shown == ({"all"} if len(names) == 1 else {"all", *names})


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    before = write_report(tmp_path).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(_make_run(tmp_path, _rows(10)))
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_two_seconds_and_half_a_megabyte(tmp_path):
    _make_run(tmp_path, _rows(100_000), summary=SUMMARY)
    start = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - start < 4  # 1.7 s on 2 quiet cores
    assert path.stat().st_size < 500_000
