# SPDX-License-Identifier: Apache-2.0
"""The machine that every test sees: eight simulated CPU devices and no network."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # inherited by the commands that tests start
# compiled once per machine, for tests in other processes too; `make clean` empties it
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# tests compile far more than they compute, and ask for values, not speed; XLA_FLAGS= gives what users run
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")  # (B,) + (T, B) is a bug, not a broadcast

LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None}


def refuse_network(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: a test that would reach another machine fails, online as well as offline."""
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host not in LOOPBACK:
        raise RuntimeError(f"a test tried to reach {host!r}; tests run without a network")


sys.addaudithook(refuse_network)


def pytest_collection_finish() -> None:
    """Tracing makes millions of objects that all stay: looking through them takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `device` are skipped, visibly, where there is only a CPU."""
    if os.environ["JAX_PLATFORMS"] == "cpu":
        for item in items:
            if item.get_closest_marker("device"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU or TPU"))
