# SPDX-License-Identifier: Apache-2.0
"""The picture of a trial's ratio shows every width's pairs at that width."""

import math
import re
from types import SimpleNamespace
from typing import Any

from jaxlm.research.desk import trial_report
from jaxlm.research.records import BASELINE
from jaxlm.research.trial import RATIO


def test_pairs_stand_at_their_own_width_whatever_the_order_of_keys() -> None:
    """The ledger sorts keys as text, where 1.51e+10 comes before 3.31e+09."""
    flops = {"small": 3.31e9, "middle": 1.51e10, "large": 3.83e10, "trial": 7.56e10}
    protocols: Any = {k: SimpleNamespace(flops_per_run={BASELINE: v}) for k, v in flops.items()}
    by_width = {"1.51e+10 FLOPs": [0.5], "3.31e+09 FLOPs": [0.75], "3.83e+10 FLOPs": [0.25]}
    expected = {RATIO: {"low": 0.2, "high": 0.6}}
    told = {"rests_on": ["small", "middle", "large"], "by_width": by_width, "expected": expected}
    scored = {"protocol": "trial", "low": 0.3, "ratio": 0.4, "high": 0.5}
    html = trial_report.ratios(scored, told, protocols)
    (path,) = re.findall(r'data-name="ladder, mean" d="M([^"]*)"', html)
    drawn = [tuple(map(float, point.split())) for point in path.split("L")]
    assert [y for _, y in drawn] == [0.75, 0.5, 0.25]
    assert all(
        abs(x - math.log10(flops[k])) < 1e-6 for (x, _), k in zip(drawn, flops, strict=False)
    )
