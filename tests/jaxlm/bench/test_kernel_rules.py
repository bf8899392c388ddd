# SPDX-License-Identifier: Apache-2.0
"""Our kernels as they are compiled today still have the regions that their rules count."""

from pathlib import Path

import pytest

from jaxlm.bench.attention_kernels import SHAPES as ATTENTION
from jaxlm.bench.cross_entropy_kernels import SHAPES as CROSS_ENTROPY
from jaxlm.bench.grouped_matmul_kernels import SHAPES as GROUPED
from jaxlm.bench.kernels import measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FLOPS_PER_CYCLE = {"v5p": 131072, "v6e": 524288}  # of the matrix units of a core


def attention_flops(shape: str, products: int) -> float:
    """Of the scores that a causal mask and a window leave; documents may leave fewer."""
    s = ATTENTION[shape]
    pairs = s.T * s.T / 2 if s.window is None else s.T * s.window - s.window**2 / 2
    return 0.0 if s.has_ids else products * 2 * s.B * s.N * pairs * s.H


CASES = {
    **{("attention/forward/ours", shape): attention_flops(shape, 2) for shape in ATTENTION},
    ("attention/forward/ours_bounded", "causal_4k"): attention_flops("causal_4k", 2),
    **{("attention/backward/ours", shape): attention_flops(shape, 5) for shape in ATTENTION},
    **{
        ("cross_entropy/both/ours", shape): 6 * s.R * s.D * s.V
        for shape, s in CROSS_ENTROPY.items()
        if shape == "gpt2_124m"
    },
    **{
        (f"grouped_matmul/{direction}/ours", shape): 2 * s.R * s.D * s.F
        for direction in ("forward", "dx", "dw")
        for shape, (s, _) in GROUPED.items()
        if shape.startswith("fine")
    },
}


@pytest.mark.parametrize("chip", ["v6e", "v5p"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_kernel_is_counted_and_takes_no_less_than_its_products(
    case: tuple[str, str], chip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'jaxlm[tpu]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = measure(*case, chip)
    assert row.cost is not None, row.reason
    cores = 2 if chip == "v5p" else 1
    assert row.cost["cycles"] * cores * FLOPS_PER_CYCLE[chip] >= CASES[case]
    assert 0 < row.cost["mxu_frac"] <= 1
