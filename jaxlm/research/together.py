# SPDX-License-Identifier: Apache-2.0
"""Many runs in one program: the train step, vmapped over members, which are split over devices.

    states (M, ...), batches (M, B, T)  ->  states (M, ...), metrics (M,)

Members differ in seeds and in the optimizer's scalars.  Each has its own run directory, as if it
had been trained alone; the sums inside of its products may be ordered otherwise, so its losses
agree with those of a run alone to rounding, not to the bit.  One compilation serves all.

Legend: M members  B batch  T positions
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.config import resolve
from jaxlm.core.errors import NonFiniteError
from jaxlm.core.types import Batch, Metrics
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.research.jobs import JobRun
from jaxlm.sharding.config import AXES
from jaxlm.telemetry.display import Display
from jaxlm.train.checkpoint import list_checkpoints
from jaxlm.train.loop import Outcome, Run
from jaxlm.train.run_dir import CHECKPOINTS, open_run_dir
from jaxlm.train.session import describe, write_end, write_start
from jaxlm.train.setup import Trainer, build_trainer, on_mesh
from jaxlm.train.state import TrainState

Tell = Callable[[Path, int], None]  # (run directory, completed updates)
MEMBERS = "members"


def train_together(jobs: Sequence[JobRun], tell: Tell, quiet: Display) -> None:
    """Trains runs of one group (jobs.by_program) to their end, from their newest common checkpoint.

    Raises CheckpointError when a save failed.  A member that diverges stops alone.
    """
    trainer = _trainer(jobs)
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(_opened(job, trainer, quiet)) for job in jobs]
        stack.enter_context(on_mesh(trainer.mesh, trainer.rules))
        _train(members, trainer, tell, jobs[0].until)


@dataclasses.dataclass
class _Member:
    run: Run
    summary: dict[str, Any]
    has_diverged: bool = False


@contextlib.contextmanager
def _opened(job: JobRun, trainer: Trainer, quiet: Display) -> Iterator[_Member]:
    """A run directory, held and begun; its summary is written when the block ends, however."""
    data = prepare(job.config.data)
    resolved = resolve(job.config, 1)
    with open_run_dir(job.directory, job.config, "", data.data_id):
        run = Run(job.config, resolved, data, job.directory, quiet, trainer)
        summary = {"status": "crashed", "step": None, "final": None, "baselines": data.baselines}
        member = _Member(run, summary | {"resolved": describe(resolved)})
        try:
            write_start(run, data)
            yield member
        finally:
            run.close()
            with contextlib.suppress(OSError):
                write_end(job.directory, member.summary)


def _trainer(jobs: Sequence[JobRun]) -> Trainer:
    """On a mesh of all devices that divide the members; every member lives on one of them."""
    config = jobs[0].config
    data = prepare(config.data)
    tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
    devices = math.gcd(len(jobs), jax.device_count())
    mesh = jax.make_mesh(
        (devices, *(1,) * len(AXES)),
        (MEMBERS, *AXES),
        axis_types=(AxisType.Auto,) * (1 + len(AXES)),
        devices=jax.devices()[:devices],
    )
    return build_trainer(config, tokenizer.bytes_per_token_V, mesh)


def _train(members: list[_Member], trainer: Trainer, tell: Tell, until: int | None) -> None:
    config, began = members[0].run.config.train, time.perf_counter()
    end = min(until or config.num_steps, config.num_steps)
    states, step = _initial(members, trainer)
    advance = jax.jit(jax.vmap(trainer.step, spmd_axis_name=MEMBERS), donate_argnums=0)
    sources = [m.run.train_source.iter_batches(step, end) for m in members]
    pending: tuple[int, Metrics] | None = None  # the host reads metrics one update late
    for batches in zip(*sources, strict=True):
        states, metrics = advance(states, _stack(batches, trainer.mesh))
        step += 1
        if pending is not None:
            _report(members, *pending, tell)
        pending = (step, metrics)
        evaluates = step % config.eval_every == 0 and step < config.num_steps
        saves = step % config.checkpoint_every == 0 or step == end
        if evaluates or saves:
            _report(members, *pending, tell)
            pending = None
            for member, state in _sound(members, states):
                if saves:
                    member.run.save(step, state)
                if evaluates:
                    member.run.evaluate(state, step, config.eval_batches)
                member.run.reporter.paused()
    for member, state in _sound(members, states):
        member.run.checkpoints.wait()
        is_whole = step == config.num_steps
        final = member.run.evaluate(state, step, None) if is_whole else None
        status = "completed" if is_whole else "preempted"
        outcome = Outcome(status, step, final, time.perf_counter() - began, None)
        member.summary |= dataclasses.asdict(outcome)


def _sound(members: list[_Member], states: TrainState) -> Iterator[tuple[_Member, TrainState]]:
    """Members that have not diverged, each with its slice of the states."""
    for i, member in enumerate(members):
        if not member.has_diverged:
            yield member, jax.tree.map(lambda x, i=i: x[i], states)


def _report(members: list[_Member], step: int, metrics: Metrics, tell: Tell) -> None:
    values = jax.device_get(metrics)
    for i, member in enumerate(members):
        if member.has_diverged:
            continue
        try:
            member.run.report(step, {name: x[i] for name, x in values.items()}, 0.0)
        except NonFiniteError:
            member.has_diverged = True
            member.summary |= {"status": "diverged", "step": step}
        tell(member.run.run_dir, step)


def _initial(members: list[_Member], trainer: Trainer) -> tuple[TrainState, int]:
    """Stacked states, and how many updates they hold: the newest checkpoint that all have."""
    folders = [member.run.run_dir / CHECKPOINTS for member in members]
    common = set.intersection(*(set(list_checkpoints(folder)) for folder in folders))
    step = max(common, default=0)
    runs = [member.run for member in members]
    states = [run.restored(step) if step else trainer.fresh_state(run.config) for run in runs]
    split = NamedSharding(trainer.mesh, PartitionSpec(MEMBERS))
    stack = jax.jit(
        lambda states: jax.tree.map(lambda *x: jnp.stack(x), *states), out_shardings=split
    )
    return stack(states), step


def _stack(batches: Sequence[Batch], mesh: Mesh) -> Batch:
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    return jax.device_put(stacked, NamedSharding(mesh, PartitionSpec(MEMBERS)))
