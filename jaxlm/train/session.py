# SPDX-License-Identifier: Apache-2.0
"""A whole run from config to summary: check, prepare data, train, write what stays.

Also the way in from a notebook:

    summary = run_training(RunConfig(...), Path("runs/mine"))
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxlm.config import Resolved, RunConfig, resolve
from jaxlm.core.canonical import write_json_atomic
from jaxlm.core.errors import NonFiniteError
from jaxlm.data.prepare import PreparedData, prepare
from jaxlm.telemetry.display import Display, make_display
from jaxlm.telemetry.hardware import peak_flops
from jaxlm.telemetry.report import write_report
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.loop import Outcome, Run, train
from jaxlm.train.run_dir import TOKENIZER, environment, open_run_dir
from jaxlm.train.setup import on_mesh
from jaxlm.train.stop import StopRequest


Summary = dict[str, Any]  # what summary.json holds


def run_training(
    config: RunConfig, run_dir: Path, gin_text: str = "", display: Display | None = None
) -> Summary:
    """Trains, or goes on training what `run_dir` holds.  All processes call it alike.

    Raises a UserError, before anything is written, when config, data, devices and directory do not
    fit together; NonFiniteError and CheckpointError as jaxlm.train.loop.train.
    """
    is_main = jax.process_index() == 0
    display = make_display(config.train.log_every) if display is None else display
    resolved = resolve(config, jax.device_count())
    display.table("run", describe(resolved))
    lock = open_run_dir(run_dir, config, gin_text) if is_main else None
    data = _prepare(config, display)
    summary: Summary = {"status": "crashed", "step": None, "final": None}
    summary |= {"baselines": data.baselines, "resolved": describe(resolved)}
    try:
        with display, StopRequest() as stop:
            outcome = _train(config, resolved, data, run_dir, display, stop)
        summary |= dataclasses.asdict(outcome)
    except NonFiniteError:
        summary["status"] = "diverged"
        raise
    finally:
        if is_main:
            if summary["step"] is None:
                summary["step"] = max((row["step"] for row in read_rows(run_dir, "train")), default=0)
            write_json_atomic(run_dir / "summary.json", summary)
            write_report(run_dir)
        if lock is not None:
            lock.close()
    return summary


def describe(resolved: Resolved) -> dict[str, str]:
    """The numbers that follow from config and devices, for people."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return resolved.describe() | {"devices": kind}


def summary_table(summary: Summary) -> dict[str, str]:
    """The end of a run, for people: our bits per byte beside the compressors'."""
    table = {"status": f"{summary['status']} after {summary['step']:,} updates"}
    if summary["final"] is not None:
        table["validation"] = f"{summary['final']['eval/bpb']:.4f} bits per byte"
        for corpus, baselines in summary["baselines"].items():
            for name, bpb in baselines.items():
                of = f" of {corpus}" if len(summary["baselines"]) > 1 else ""
                table[f"{name}{of}"] = "not measured" if bpb is None else f"{bpb:.4f} bits per byte"
    if summary["tokens_per_s"] is not None:
        table["speed"] = f"{summary['tokens_per_s']:,.0f} tokens/s (median update)"
    table["training time"] = f"{summary['wall_time_s']:.1f} s"
    return table


def _train(
    config: RunConfig,
    resolved: Resolved,
    data: PreparedData,
    run_dir: Path,
    display: Display,
    stop: StopRequest,
) -> Outcome:
    run = Run(config, resolved, data, run_dir, display)
    try:
        if run.is_main:
            shutil.copyfile(data.tokenizer_path, run_dir / TOKENIZER)
            peak, peak_source = peak_flops(jax.devices()[0], config.model.compute_dtype)
            facts = {
                "devices": str(jax.devices()[0].device_kind),
                "num_devices": jax.device_count(),
                "processes": jax.process_count(),
                "mesh": dict(run.trainer.mesh.shape),
                "peak_flops_per_device": peak,
                "peak_flops_source": peak_source,
                "data_id": data.data_id,
                "config_id": config.config_id,
            }
            write_json_atomic(run_dir / "env.json", environment(**facts))
        with on_mesh(run.trainer.mesh):
            return train(run, stop)
    finally:
        run.close()


def _prepare(config: RunConfig, display: Display) -> PreparedData:
    """Process 0 prepares, then the others find it done (or do the same, without a shared disk)."""
    is_main = jax.process_index() == 0
    if not is_main:
        multihost_utils.sync_global_devices("data prepared")
    with display:
        data = prepare(config.data, progress=display.progress if is_main else None)
    if is_main and jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")
    if is_main:
        for notice in data.notices:
            display.note(notice)
    return data
