# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: Orbax writes the arrays, a sealed manifest says that they are whole.

    checkpoints/00000500/state/...       Orbax, written in the background
    checkpoints/00000500/host.npz        arrays that the main process's host remembers, if any
    checkpoints/00000500/manifest.json   written last: step, data position, leaves, checksums

A checkpoint exists once its manifest does.  Orbax does not checksum array payloads, so every file
is checked against the manifest before it is restored; a damaged checkpoint is passed over, loudly,
for the one before.
"""

import concurrent.futures
import dataclasses
import errno
import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxlm.core.canonical import write_json_atomic
from jaxlm.core.errors import CheckpointError, way_out
from jaxlm.train.sealing import HOST, MANIFEST, first_line, manifest, verify
from jaxlm.train.state import TrainState

ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
SMALL_FILES_BYTES = 1_000_000  # what a checkpoint takes besides its arrays, rounded up


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to.  batch(step) is a function of data_id, so step is its position."""

    config_id: str
    data_id: str


class Checkpointer:
    """Saves one run's states.  At most one save is in flight."""

    def __init__(self, directory: Path, keep: int, identity: Identity) -> None:
        self._directory, self._keep, self._identity = directory.absolute(), keep, identity
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        for name in ("absl", "asyncio"):  # Orbax logs, with tracebacks, what it raises as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _ignore_closed_loops()
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
        self._sealing: concurrent.futures.Future[None] | None = None
        self._directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._remove_unsealed()

    def save(
        self, step: int, state: TrainState, host: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Returns once the state is copied to the host; files are written and sealed behind.

        Raises CheckpointError when the save before this one failed.
        """
        self.wait()
        path, host = self._path(step), dict(host or {})
        if jax.process_index() == 0:  # a damaged one that was passed over is no checkpoint any more
            (path / MANIFEST).unlink(missing_ok=True)
        _check_room(path, (state, host))
        try:
            self._orbax.save(path / "state", args=ocp.args.StandardSave(state), force=True)
        except (OSError, ValueError) as e:  # Orbax reports a full disk as ValueError
            raise _cannot_save(path, e) from e
        leaves = _describe(state)
        self._sealing = self._sealer.submit(self._finish, step, leaves, host)

    def wait(self) -> None:
        """Until the save in flight stands on disk.  Raises CheckpointError if it failed."""
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._orbax.close()

    def _path(self, step: int) -> Path:
        return self._directory / f"{step:08d}"

    def _finish(self, step: int, leaves: dict[str, Any], host: dict[str, np.ndarray]) -> None:
        """Waits for Orbax, seals, drops what is too old.  Runs on the sealer's thread."""
        path = self._path(step)
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                if host:
                    np.savez(path / HOST, **host)  # type: ignore[arg-type]  # its own keyword is no array
                identity = dataclasses.asdict(self._identity)
                facts = identity | {"step": step, "next_batch": step, "leaves": leaves}
                write_json_atomic(path / MANIFEST, manifest(path, **facts))
                for old in list_checkpoints(self._directory)[: -self._keep]:
                    _remove(self._path(old))
        except (OSError, ValueError) as e:
            raise _cannot_save(path, e) from e

    def _remove_unsealed(self) -> None:
        """What a crash left behind: steps half written or half removed; nothing that has another name."""
        for path in self._directory.iterdir():
            name = path.name.removesuffix(ORBAX_TEMPORARY)
            if name.isdigit() and path.is_dir() and not (path / MANIFEST).exists():
                shutil.rmtree(path)


def restore(directory: Path, step: int, like: TrainState, data_id: str | None = None) -> TrainState:
    """The state of a sealed checkpoint, on the shardings of `like` (abstract arrays).

    Raises CheckpointError for damage, for a tree, shape or dtype other than `like`'s, and for
    other data than `data_id` when that is given.
    """
    path = directory.absolute() / f"{step:08d}"
    sealed = verify(path)
    _check_leaves(path, sealed["leaves"], _describe(like))
    if data_id not in (None, sealed["data_id"]):
        raise CheckpointError(
            f"{path} was trained on other data (id {sealed['data_id'][:12]}, now {data_id[:12]}): "
            "the text, the tokenizer or the packing changed; restore it, or start anew with --run"
        )
    with ocp.StandardCheckpointer() as orbax:
        return orbax.restore(path / "state", like)


def restore_host(directory: Path, step: int) -> dict[str, np.ndarray]:
    """What was saved beside the state of a sealed checkpoint; empty where nothing was."""
    path = directory / f"{step:08d}" / HOST
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def list_checkpoints(directory: Path) -> list[int]:
    """Steps of the sealed checkpoints in a folder, ascending."""
    names = [path.parent.name for path in directory.glob(f"*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdigit())


def _describe(state: TrainState) -> dict[str, Any]:
    """Path -> [shape, dtype] of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(k): [list(x.shape), str(np.dtype(x.dtype))] for k, x in leaves}


def _check_leaves(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differences: Iterator[str] = (
        f"{leaf}: saved {saved.get(leaf, 'nothing')}, the model has {wanted.get(leaf, 'nothing')}"
        for leaf in sorted(saved.keys() | wanted.keys())
        if saved.get(leaf) != wanted.get(leaf)
    )
    if first := next(differences, None):
        more = sum(1 for _ in differences)
        raise CheckpointError(
            f"{path} is of another model: {first}" + (f" (and {more} more)" if more else "")
        )


def _remove(path: Path) -> None:
    """Takes the seal first: a crash in between leaves nothing that looks like a checkpoint."""
    (path / MANIFEST).unlink()
    shutil.rmtree(path)


def _check_room(path: Path, arrays: Any) -> None:
    """Before Orbax starts: a disk that fills up under its threads is reported in many traces."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + SMALL_FILES_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        room = f"{needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free"
        raise _cannot_save(path, OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {room}"))


def _cannot_save(path: Path, error: Exception) -> CheckpointError:
    full = os.strerror(errno.ENOSPC)  # Orbax says it at the end of a line full of paths
    reason = full if full in str(error) else first_line(error)
    advice = way_out(error) if isinstance(error, OSError) and reason != full else "make room"
    return CheckpointError(
        f"cannot save {path}: {reason}; the checkpoints before it stand: {advice}, "
        "then give the same command again"
    )


@functools.cache  # once in a process
def _ignore_closed_loops() -> None:
    """After a failed save Orbax closes its event loop under writes that end later and complain."""
    show = sys.unraisablehook

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            show(raised)

    sys.unraisablehook = hook


def newest_whole(directory: Path, note: Any) -> int | None:
    """Step of the newest checkpoint that verifies; each damaged one is reported through `note`.

    Raises CheckpointError when there are checkpoints and none is whole.
    """
    steps = list_checkpoints(directory)
    for step in reversed(steps):
        try:
            verify(directory / f"{step:08d}")
            return step
        except CheckpointError as e:
            note(f"passing over a damaged checkpoint: {e}")
    if steps:
        raise CheckpointError(
            f"all checkpoints in {directory} are damaged: {steps}; start anew with --run"
        )
    return None
