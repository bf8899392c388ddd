# SPDX-License-Identifier: Apache-2.0
"""A whole run from config to summary: check, prepare data, train, write what stays.

Also the way in from a notebook:

    summary = run_training(RunConfig(...), Path("runs/mine"))
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from jaxlm.config import Resolved, RunConfig, resolve
from jaxlm.core.canonical import to_jsonable, write_atomic, write_json_atomic
from jaxlm.core.errors import NonFiniteError
from jaxlm.data.prepare import prepare
from jaxlm.data.prepared import PreparedData
from jaxlm.loss import batch_loss
from jaxlm.model.residuals import saved_bytes
from jaxlm.model.transformer import Model
from jaxlm.optim.groups import group_indices
from jaxlm.sharding.mesh import make_mesh
from jaxlm.telemetry.display import Display, make_display
from jaxlm.telemetry.hardware import peak_flops
from jaxlm.telemetry.report import write_report
from jaxlm.telemetry.tensorboard import check_installed
from jaxlm.telemetry.writer import read_rows
from jaxlm.train.compiler import compiler_options
from jaxlm.train.loop import Outcome, Run, train
from jaxlm.train.processes import all_alike, leaving_at_failure, main_first
from jaxlm.train.run_dir import TOKENIZER, check_run_dir, environment, flat, open_run_dir
from jaxlm.train.setup import Trainer, abstract_batch, build_trainer, kernel_choices, on_mesh
from jaxlm.train.stop import StopRequest

Summary = dict[str, Any]  # what summary.json holds


def run_training(
    config: RunConfig,
    run_dir: Path,
    gin_text: str = "",
    display: Display | None = None,
    trainer: Trainer | None = None,
    load_step: Callable[[Trainer], Trainer] | None = None,
    until: int | None = None,
) -> Summary:
    """Trains, or goes on training what `run_dir` holds.  All processes call it alike.

    trainer: compiled functions of an earlier run that differs in nothing but seeds and the
             optimizer's scalars; None: built here
    load_step: puts a compiled step in the place of the trainer's
    until:   updates after which to stop, as if asked to; it goes on when called again

    Raises a UserError, before anything is written, when config, data, devices and directory do not
    fit together; NonFiniteError and CheckpointError as jaxlm.train.loop.train.
    """
    is_main = jax.process_index() == 0
    display = make_display(config.train.log_every) if display is None else display
    resolved = resolve(config, jax.device_count())
    display.table("run", describe(resolved) | describe_kernels(config))
    if config.train.tensorboard:
        check_installed()
    group_indices(Model(config.model).axes(), config.optim.groups)  # each must match a parameter
    all_alike("config", flat(to_jsonable(config)))
    data, lock = main_first(lambda: _prepare(config, run_dir, gin_text, display))
    all_alike("text", {"data_id": data.data_id})
    summary: Summary = {"status": "crashed", "step": None, "final": None}
    summary |= {"baselines": data.baselines, "resolved": describe(resolved)}
    try:
        with leaving_at_failure(), display, StopRequest(until) as stop:
            outcome = _train(config, resolved, data, run_dir, display, stop, trainer, load_step)
            if is_main and outcome.status == "completed":
                display.finish()
        summary |= dataclasses.asdict(outcome)
        if is_main:
            write_end(run_dir, summary)
    except BaseException as error:
        if is_main:
            summary["status"] = "diverged" if isinstance(error, NonFiniteError) else "crashed"
            with contextlib.suppress(OSError):  # what ended the run is the news, not a full disk
                write_end(run_dir, summary)
        raise
    finally:
        if lock is not None:
            lock.close()
    return summary


def write_end(run_dir: Path, summary: Summary) -> None:
    """summary.json and report.html: the last that a run writes."""
    if summary["step"] is None:
        summary["step"] = max((row["step"] for row in read_rows(run_dir, "train")), default=0)
    path = run_dir / "summary.json"
    write_json_atomic(path, summary)
    try:
        write_report(run_dir)
    except OSError:  # no run counts as finished without its page: the same command writes both
        path.unlink()
        raise


def describe(resolved: Resolved) -> dict[str, str]:
    """The numbers that follow from config and devices, for people."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return resolved.describe() | {"devices": kind}


def describe_kernels(config: RunConfig) -> dict[str, str]:
    """What each part runs by here.  Raises ConfigError for a kernel that cannot run."""
    choices = kernel_choices(config, make_mesh(config.mesh))
    return {"kernels": ", ".join(f"{part} {how}" for part, how in choices.items())}


def describe_memory(config: RunConfig) -> dict[str, str]:
    """Bytes over all devices together, by owner; from shapes alone, so for a model of any size."""
    trainer = build_trainer(config, np.ones(1, np.int32))
    state, rows = trainer.abstract_state, config.data.batch_size // config.train.num_micro_batches
    batch = abstract_batch(config, trainer.mesh, rows)
    loss = lambda params, batch: batch_loss(trainer.model, params, batch).loss
    owners = {
        "parameters": _num_bytes(state.params),
        "gradients": _num_bytes(state.params),
        "optimizer state": _num_bytes(state.opt_state),
        f"activations stored for backward (remat {config.model.remat!r}, {rows} rows)": saved_bytes(
            loss, state.params, batch
        ),
    }
    return {owner: f"{count / 2**20:,.1f} MiB" for owner, count in owners.items()}


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
    trainer: Trainer | None,
    load_step: Callable[[Trainer], Trainer] | None,
) -> Outcome:
    run = Run(config, resolved, data, run_dir, display, trainer)
    if load_step is not None:
        run.trainer = load_step(run.trainer)
    try:
        if run.is_main:
            write_start(run, data)
        with on_mesh(run.trainer.mesh, run.trainer.rules):
            return train(run, stop)
    finally:
        run.close()


def write_start(run: Run, data: PreparedData) -> None:
    """What a run directory holds before the first update: tokenizer and env.json."""
    config, device = run.config, jax.devices()[0]
    write_atomic(run.run_dir / TOKENIZER, data.tokenizer_path.read_bytes())
    peak, peak_source = peak_flops(device, config.model.compute_dtype)
    facts = {
        "devices": str(device.device_kind),
        "num_devices": jax.device_count(),
        "processes": jax.process_count(),
        "mesh": dict(run.trainer.mesh.shape),
        "peak_flops_per_device": peak,
        "peak_flops_source": peak_source,
        "data_id": data.data_id,
        "tokenizer_sha256": data.tokenizer_sha256,
        "config_id": config.config_id,
        "kernels": kernel_choices(config, run.trainer.mesh),
        "compiler_options": compiler_options(run.trainer.mesh) or {},
    }
    write_json_atomic(run.run_dir / "env.json", environment(**facts))


def _prepare(
    config: RunConfig, run_dir: Path, gin_text: str, display: Display
) -> tuple[PreparedData, IO[str] | None]:
    """Data, and in process 0 the lock of the run directory.  Without a shared disk all prepare."""
    is_main = jax.process_index() == 0
    if is_main:
        check_run_dir(run_dir, config)  # before the text is read, which can take long
    with display:
        data = prepare(config.data, progress=display.progress if is_main else None)
    for notice in data.notices if is_main else ():
        display.note(notice)
    return data, open_run_dir(run_dir, config, gin_text, data.data_id) if is_main else None
