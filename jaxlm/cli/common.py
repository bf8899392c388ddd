# SPDX-License-Identifier: Apache-2.0
"""Arguments and device set-up that several commands share.  Imports no jax until asked to."""

import argparse
import contextlib
import ctypes
import gc
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError

OF_SRUN = ("SLURM_PROCID", "SLURM_STEP_NODELIST")  # what JAX joins by
JOIN_TIMEOUT_S = 120  # machines of one job start minutes apart


def add_config_arguments(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    parser.add_argument("config", nargs=nargs, help="gin files; later ones override")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a field with a gin expression, e.g. --set OptimConfig.peak_lr=3e-4; repeatable",
    )  # fmt: skip


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("devices", "TPU, SLURM and GKE jobs need none of these")
    group.add_argument("--cpu-devices", type=int, metavar="N", help="simulate N devices on the CPU")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="processes in all")
    group.add_argument("--process-id", type=int, metavar="I", help="this process, from 0")


def check_outputs(*paths: str | Path | None) -> None:
    """Raises ConfigError for a file that cannot lie there: before the work, not after it."""
    given = [Path(path) for path in paths if path is not None]
    for i, path in enumerate(given):
        if path == Path("-"):
            raise ConfigError("a file named - cannot be written: only plan --json prints; name it")
        if path.resolve() in [other.resolve() for other in given[:i]]:
            raise ConfigError(f"{path} cannot be written twice: give each option a file of its own")
        folder = path.parent
        if not folder.is_dir():
            raise ConfigError(
                f"{path} cannot be written: there is no folder {folder}; make it first"
            )
        if path.is_dir():
            raise ConfigError(f"{path} cannot be written: it is a folder; name a file")


def set_up_devices(args: argparse.Namespace) -> None:
    """Platform, processes and compile cache; before anything else touches a device.

    Raises ConfigError for flags that do not fit together or a coordinator that does not answer.
    """
    if args.cpu_devices is not None and args.cpu_devices < 1:
        raise ConfigError(
            f"--cpu-devices must be >= 1, got {args.cpu_devices}; leave it out to use what is there"
        )
    flags = (args.coordinator, args.num_processes, args.process_id)
    if any(f is not None for f in flags) and None in flags:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id go together; give all three"
        )
    if args.coordinator is not None and not re.fullmatch(r".+:\d+", args.coordinator):
        raise ConfigError(
            f"--coordinator must be HOST:PORT, such as 10.0.0.1:8476, got {args.coordinator!r}"
        )
    if args.num_processes is not None and args.num_processes < 1:
        raise ConfigError(f"--num-processes must be >= 1, got {args.num_processes}")
    if args.num_processes is not None and not 0 <= args.process_id < args.num_processes:
        raise ConfigError(
            f"--process-id must be in 0..{args.num_processes - 1}, got {args.process_id}"
        )

    keep_freed_memory()
    # tracing makes millions of objects that stay: searching them is a twentieth of a small run's start
    gc.set_threshold(100_000, 50, 100)
    import jax

    if args.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.cpu_devices)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxlm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if args.coordinator is not None:
        if args.process_id > 0:
            _await_coordinator(args.coordinator)
        _join(
            jax,
            coordinator_address=args.coordinator,
            num_processes=args.num_processes,
            process_id=args.process_id,
        )
    elif _is_cluster_job():
        _join(jax)  # the address comes from the cluster's environment
    _find_devices(jax)


def keep_freed_memory() -> None:
    """Lets glibc reuse a step's buffers for the next, instead of giving their pages back.

    On a CPU every page of every temporary is otherwise faulted in again at each update: a fifth of
    the time of a small model's update.  Before jax starts its threads; no effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1  # names in malloc.h
    for option, value in (
        (arena_max, 1),
        (mmap_max, 0),
        (top_pad, 64 << 20),
        (trim_threshold, 2**31 - 1),
    ):
        mallopt(option, value)


def _find_devices(jax: Any) -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # jax asserts when a platform's plugin is missing
        asked = os.environ.get("JAX_PLATFORMS")
        reason = (str(e) or "no such device").partition(" (set JAX_PLATFORMS")[0]
        raise ConfigError(
            f"JAX_PLATFORMS={asked!r} cannot be used here: {reason}; unset it to take what is there, "
            "or install the extra: pip install 'jaxlm[cuda]' or 'jaxlm[tpu]'"
        ) from e


def _is_cluster_job() -> bool:
    """Whether the environment names peers: SLURM, Open MPI, Cloud TPU or GKE, one slice or many."""
    names = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
    has_peers = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if has_peers or any(name in os.environ for name in names) or _told("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    tasks = _told("SLURM_NTASKS")
    if tasks > 1 and any(name not in os.environ for name in OF_SRUN):
        raise ConfigError(
            f"SLURM_NTASKS={tasks}, but this process is none of those tasks: start it with srun, or "
            "unset SLURM_NTASKS to run alone"
        )
    return tasks > 1


def _told(name: str) -> int:
    """A number of processes in the environment; 1 where it is not there or empty."""
    text = os.environ.get(name) or "1"
    if not text.isdecimal():
        raise ConfigError(
            f"{name} must be a number of processes, got {text!r}; unset it to run alone"
        )
    return int(text)


def _await_coordinator(address: str) -> None:
    """Until process 0 listens.  Left to itself JAX would abort, with a trace of its C++ code."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as e:  # no such host yet, nobody listens yet, no such port
            if time.monotonic() > end:
                raise ConfigError(
                    f"--coordinator {address} does not answer ({e}); "
                    "check that process 0 runs and that its address can be reached from here"
                ) from e
            time.sleep(0.2)
        else:
            return


def _join(jax: Any, **where: Any) -> None:
    place = where.get("coordinator_address", "the cluster's coordinator")
    with _limit(JOIN_TIMEOUT_S, f"not all processes came to {place} within {JOIN_TIMEOUT_S} s"):
        try:
            # heartbeat: how soon a killed peer is noticed; its default of 100 s is rented time
            jax.distributed.initialize(
                **where,
                initialization_timeout=2 * JOIN_TIMEOUT_S,
                heartbeat_timeout_seconds=20,
            )
        except (RuntimeError, ValueError) as e:
            raise ConfigError(
                f"cannot join the other processes at {place}: {str(e).splitlines()[0]}; "
                "check that process 0 runs and that its address can be reached from here"
            ) from e


@contextlib.contextmanager
def _limit(seconds: float, complaint: str) -> Iterator[None]:
    """Ends the process with one line when the body takes longer.

    At its own limit JAX aborts from C++, where nothing can be caught.
    """

    def leave() -> None:
        print(f"jaxlm: error: {complaint}; check that the others run", file=sys.stderr, flush=True)
        os._exit(ConfigError.exit_code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
