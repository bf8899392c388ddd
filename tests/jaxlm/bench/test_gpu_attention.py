# SPDX-License-Identifier: Apache-2.0
"""The measuring of attention kernels on a GPU, tried on the CPU with the definition as the kernel."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.bench import gpu_attention as bench
from jaxlm.core.errors import ConfigError
from pallas_kernels.attention import api
from pallas_kernels.attention.specs import Spec

SPECS = {
    "grouped": Spec(T=300, N=4, K=2, H=16),
    "window": Spec(T=300, H=16, window=20),
    "documents": Spec(B=2, T=300, H=16, has_ids=True),
}


def _definition(spec: Spec, ids: Any, factor: float = 1.0) -> Any:
    return lambda q, k, v: api.attention(
        q, factor * k, v, window=spec.window, segment_ids=(ids, ids) if spec.has_ids else None,
        impl="reference",
    )  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_a_right_kernel_gets_its_time_and_its_work(name: str, monkeypatch: pytest.MonkeyPatch):
    spec = SPECS[name]
    monkeypatch.setitem(bench.KERNELS, "ours", _definition)
    forward, backward = bench.measure(name, spec, "ours", lambda *args: 0.001)
    distance = np.arange(spec.T)[:, None] - np.arange(spec.T)
    seen = (distance >= 0) & (distance < (spec.window or spec.T))
    seen = np.broadcast_to(seen, (spec.B, spec.T, spec.T))
    if spec.has_ids:
        ids = np.asarray(bench.draw(spec)[-1])
        seen = seen & (ids[:, :, None] == ids[:, None, :])
    assert forward.ms == backward.ms == 1.0
    assert forward.tflops == pytest.approx(4 * seen.sum() * spec.N * spec.H / 0.001 * 1e-12)
    assert backward.tflops == pytest.approx(2.5 * forward.tflops)


def test_a_wrong_kernel_gets_no_time(monkeypatch: pytest.MonkeyPatch):
    wrong = lambda spec, ids: _definition(spec, ids, factor=1.5)
    monkeypatch.setitem(bench.KERNELS, "ours", wrong)
    rows = bench.measure("grouped", SPECS["grouped"], "ours", lambda *args: 0.001)
    assert [row.ms for row in rows] == [None, None]
    assert all("wrong" in line for line in list(bench.table(rows))[1:])


def test_what_a_rival_cannot_do_is_said_in_its_row():
    rows = bench.measure("documents", SPECS["documents"], "cuDNN", lambda *args: 0.001)
    assert {row.reason for row in rows} == {"has no packed documents without a mask of T x T"}


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(ConfigError, match="measures on an NVIDIA GPU .*; this is cpu"):
        bench.bench_gpu(lambda *args: None)
