# SPDX-License-Identifier: Apache-2.0
"""report.html: one self-contained page about a run, from whatever its directory holds so far.

Standard library only.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.telemetry.curves import centred_mean, points_of, thin
from jaxlm.telemetry.page import page, write_page
from jaxlm.telemetry.readable import duration, fixed, markup, number, percent
from jaxlm.telemetry.record import Run, read_run
from jaxlm.telemetry.registry import spec_of
from jaxlm.telemetry.svg import Series, line_chart
from jaxlm.telemetry.writer import Row

MAX_POINTS = 1500  # of one line in a chart
MAX_ROWS = 200  # of one table
MAX_SAMPLED_STEPS = 20
LAST = 20  # updates whose mean is the last training loss

# name, title, should it start at zero.  The noise of each is drawn behind its running mean.
TRAIN_CHARTS = (
    ("train/loss_nats", "Training loss", False),
    ("optim/lr", "Learning rate", True),
    ("grad/norm_l2", "Gradient norm", False),
    ("update/ratio_rms", "Update / parameters", False),
    ("perf/tokens_per_s", "Throughput", True),
)


def write_report(run_dir: Path, changed: Collection[str] = ()) -> Path:
    """Writes RUN_DIR/report.html and returns its path.

    changed: config fields to emphasise, as dotted paths ("optim.peak_lr").
    """
    path = run_dir / "report.html"
    write_page(path, render(read_run(run_dir), changed))
    return path


def render(run: Run, changed: Collection[str] = ()) -> str:
    """The page as text."""
    parts = [_head(run), _result(run), _cards(run), _charts(run), _samples(run.samples)]
    parts += [_table("Resolved numbers", run.summary.get("resolved", {}).items())]
    parts += [_log(run.log), _config(run.config, changed), _table("Environment", _flat(run.env))]
    return page(f"{run.name} · jaxlm", "\n".join(parts))


def _head(run: Run) -> str:
    status = run.summary.get("status", "unfinished")
    step = run.summary.get("step", run.train[-1]["step"] if run.train else 0)
    total = run.config.get("train", {}).get("num_steps")
    facts = [f"update {step:,}" + (f" of {total:,}" if total else "")]
    if status == "unfinished":
        facts.append("no summary yet: the run is going on, or was killed")
    facts += run.problems
    return (
        f"<h1>{markup(run.name)}</h1>"
        f'<p><span class="pill {markup(status)}">{markup(status)}</span> '
        f'<span class="mute">&nbsp;{markup(" · ".join(facts))}</span></p>'
    )


def _result(run: Run) -> str:
    """Bits per byte, large, and beside it what the compressors of everybody's shell reach."""
    final = _final(run)
    if final.get("eval/bpb") is None:
        return ""
    is_final = final is run.summary.get("final")
    when = "final validation" if is_final else f"validation at update {final['step']:,}, not final"
    bpb, verdict = final["eval/bpb"], ""
    baselines = run.summary.get("baselines", {})
    rows = [("this run", bpb, "run")]
    for corpus, tools in baselines.items():
        if len(baselines) > 1 and f"eval/bpb@{corpus}" in final:
            rows.append((corpus, final[f"eval/bpb@{corpus}"], "run"))
        rows += [(_level_name(tool, corpus, baselines), value, "") for tool, value in tools.items()]
    rivals = [row for row in rows if not row[2]]
    if len(baselines) == 1 and rivals and math.isfinite(bpb):
        name, best, _ = min(rivals, key=lambda row: row[1])
        verdict = f"{percent(abs(1 - bpb / best))} {'below' if bpb < best else 'above'} {name}"
    top = max([v for _, v, _ in rows if math.isfinite(v)], default=1.0)
    bars = "".join(
        f'<span class="{kind}">{markup(name)}</span><span><i class="{kind}" style="width:'
        f'{100 * value / top if math.isfinite(value) else 0:.1f}%"></i></span>'
        f'<span class="{kind}">{value:.3f}</span>'
        for name, value, kind in (rows if rivals else [])
    )
    return (
        f'<div class="box result"><div><b>{bpb:.3f}</b> bits per byte'
        f'<p class="mute">{when}<br>{markup(verdict)}</p></div><div class="bars">{bars}</div></div>'
    )


def _final(run: Run) -> Row:
    """The final evaluation, or else the latest one."""
    return run.summary.get("final") or (run.evals[-1] if run.evals else {})


def _level_name(tool: str, corpus: str, baselines: Row) -> str:
    return tool if len(baselines) == 1 else f"{tool}, {corpus}"


def _cards(run: Run) -> str:
    final, last = _final(run), run.train[-1] if run.train else {}
    cards = {
        "validation loss": fixed(final.get("eval/loss_nats")),
        "validation accuracy": percent(final.get("eval/accuracy_frac")),
        f"training loss, last {LAST}": fixed(_mean(_values(run.train, "train/loss_nats")[-LAST:])),
        "tokens trained": number(last.get("data/tokens_seen")),
        "parameters": str(run.summary.get("resolved", {}).get("parameters", "-")).split(" ")[0],
        "tokens per second": number(
            run.summary.get("tokens_per_s") or _median(run.train, "perf/tokens_per_s")
        ),
        "MFU, median": percent(_median(run.train, "perf/mfu_frac")),
        "wall time": duration(
            run.summary.get("wall_time_s", math.fsum(_values(run.train, "perf/step_time_s")))
        ),
    }
    items = (
        f'<div class="box"><dt>{markup(k)}</dt><dd>{markup(v)}</dd></div>' for k, v in cards.items()
    )
    return f'<dl class="cards">{"".join(items)}</dl>'


def _values(rows: Iterable[Row], name: str) -> list[float]:
    return [value for row in rows if (value := row.get(name)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _median(rows: Iterable[Row], name: str) -> float | None:
    values = [v for v in _values(rows, name) if math.isfinite(v)]
    return statistics.median(values) if values else None


def _charts(run: Run) -> str:
    baselines = run.summary.get("baselines", {})
    levels = [level for tools in baselines.values() for level in tools.items()]
    if len(baselines) > 1:  # a thicket; the bars above have them
        levels = []
    marks = [(row["step"], str(row["event"])) for row in run.log if row.get("event") == "resumed"]
    names = sorted({name for row in run.evals for name in row if name.startswith("eval/bpb")})
    if len(names) == 2:  # of all, and of the only corpus: the same
        names = names[:1]
    lines = [
        Series(name.partition("@")[2] or "all", points_of(run.evals, name), color)
        for color, name in enumerate(names)
    ]
    figures = [_figure("eval/bpb", "Validation", lines, levels=levels, marks=marks)]
    for name, title, from_zero in TRAIN_CHARTS:
        points = points_of(run.train, name)
        mean = centred_mean(points, half=len(points) // 100 + 2, limit=MAX_POINTS // 4)
        pair = [Series("each", thin(points, MAX_POINTS), is_faint=True), Series("mean", mean)]
        if name == "optim/lr":  # exact: a running mean would bend its corners
            pair = [Series("lr", thin(points, MAX_POINTS))]
        figures.append(_figure(name, title, pair, from_zero=from_zero, marks=marks))
    toggle = '<input type="checkbox" id="log"> <label for="log">logarithmic scales</label>'
    return _section("Curves", f'{toggle}<div class="grid">{"".join(figures)}</div>')


def _figure(name: str, title: str, series: Sequence[Series], **options: Any) -> str:
    """The chart on both scales; the page's check box says which one is seen."""
    spec = spec_of(name)
    options |= {
        "title": title,
        "x_label": "update",
        "y_label": spec.unit.removeprefix("1"),
        "description": spec.meaning,
    }
    linear, log = (line_chart(series, **options, is_log=is_log) for is_log in (False, True))
    return f'<div class="box"><div class="linear">{linear}</div><div class="log">{log}</div></div>'


def _samples(samples: list[Row]) -> str:
    by_step: dict[int, dict[str, str]] = {}
    for row in samples:  # a resumed run writes a step again: the last one counts
        by_step.setdefault(row["step"], {})[row["prompt"]] = row["text"]
    blocks = []
    for step in sorted(by_step, reverse=True)[:MAX_SAMPLED_STEPS]:
        texts = "".join(
            f'<div class="box"><pre><b>{markup(prompt)}</b>{markup(text)}</pre></div>'
            for prompt, text in by_step[step].items()
        )
        blocks.append(f'<h3 class="mute">update {step:,}</h3><div class="grid">{texts}</div>')
    older = f"<details><summary>earlier samples</summary>{''.join(blocks[1:])}</details>"
    return _section("Samples", "".join(blocks[:1]) + (older if blocks[1:] else ""))


def _log(log: list[Row]) -> str:
    rows = [(f"{row['step']:,}", _describe(row)) for row in log]
    hidden = len(rows) - MAX_ROWS
    if hidden > 0:
        rows = [("...", f"{hidden:,} earlier ones"), *rows[hidden:]]
    return _table("Events", rows)


def _describe(row: Row) -> str:
    if row["kind"] == "event":
        return " · ".join(str(row[key]) for key in ("event", "detail") if row.get(key) is not None)
    scores = {n.removeprefix("eval/"): v for n, v in row.items() if n.startswith("eval/")}
    shown = (f"{n} {number(v, 4)}" for n, v in scores.items() if n not in ("tokens", "bytes"))
    return "evaluated · " + ", ".join(shown)


def _config(config: Row, changed: Collection[str]) -> str:
    tables = []
    for section, values in config.items():
        rows = _flat(values) if isinstance(values, dict) else [("", _text(values))]
        body = "".join(_row(k, v, f"{section}.{k}" in changed) for k, v in rows)
        tables.append(f'<div class="box"><h3>{markup(section)}</h3><table>{body}</table></div>')
    return _section("Config", f'<div class="grid">{"".join(tables)}</div>' if tables else "")


def _flat(values: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted path, text)."""
    if isinstance(values, dict):
        items = [(f"{path}.{k}" if path else str(k), v) for k, v in values.items()]
    elif isinstance(values, list) and any(isinstance(v, dict | list) for v in values):
        items = [(f"{path}[{i}]", v) for i, v in enumerate(values)]
    else:
        return [(path, _text(values))]
    return [row for name, value in items for row in _flat(value, name)]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    body = "".join(_row(name, str(text)) for name, text in rows)
    return _section(title, f'<div class="box"><table>{body}</table></div>' if body else "")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _row(name: str, text: str, is_changed: bool = False) -> str:
    tag = '<tr class="changed">' if is_changed else "<tr>"
    return f"{tag}<th>{markup(name)}</th><td>{markup(text)}</td></tr>"
