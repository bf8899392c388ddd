# SPDX-License-Identifier: Apache-2.0
"""What a person is told of a patch before it may train: its tests, its size, its cost.

A person has let it be tried; it runs behind the walls.  The clean code makes the same few updates there,
so that both are measured alike.  What the patched process says of itself is marked as claimed; its
processor time is not, it was seen from outside.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxlm.config import RunConfig, resolve
from jaxlm.core.errors import RunError
from jaxlm.research.desk.quoting import plain
from jaxlm.research.patch.diff import TESTS, patched_copy
from jaxlm.research.patch.host import FAIR_TIME, LEAST_S, feed, reference
from jaxlm.research.sandbox import sandbox
from jaxlm.research.sandbox.sandbox import Limits

FAIR = 1.05  # FLOPs of an update's matrix products, as a multiple of the clean code's
TEST_LIMITS = Limits(wall_s=300, cpu_s=300)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Figures are of one update; `claimed_*` are the patched code's own words."""

    claimed_tests: str
    params: int  # of the config, by our accounting
    claimed_params: int
    flops: float  # of an update's matrix products, by the config
    clean_flops: float  # as the clean code is traced, so with what is computed and masked
    claimed_flops: float  # and the patched code
    clean_cpu_s: float
    cpu_s: float
    walls: str
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the person who is asked."""
        told = [
            f"tests: {self.claimed_tests} (claimed by the patched code)",
            f"parameters: {self.params:,} by the config; {self.claimed_params:,} claimed",
            f"FLOPs of an update's products: {self.flops:.4g} by the config; traced "
            f"{self.clean_flops:.4g} clean, {self.claimed_flops:.4g} patched "
            f"({_percent(self.claimed_flops, self.clean_flops)}, claimed)",
            f"processor time of an update: {self.clean_cpu_s:.4f} s clean, {self.cpu_s:.4f} s patched "
            f"({_percent(self.cpu_s, self.clean_cpu_s)}, measured from outside)",
            f"walls: {self.walls}",
        ]
        return told + [f"PROBLEM: {problem}" for problem in self.problems]


def try_patch(config: RunConfig, diff: str, is_weaker_allowed: bool) -> Trial:
    """Raises RunError where the walls do not stand."""
    tests, tests_problem = _tests(diff, is_weaker_allowed)
    clean = reference(config, is_weaker_allowed)
    updates, resolved = len(clean.losses), resolve(config, 1)
    claims, cpu_s, problems = {"params": 0.0, "flops": 0.0}, 0.0, tests_problem
    if not problems:
        try:
            found = feed(config, diff, updates, is_weaker_allowed)
            claims, cpu_s = found.claims, found.update_s
            problems = list(_cost_problems(claims, clean.claims, cpu_s, clean.update_s, updates))
        except RunError as e:
            problems = [str(e)]
    return Trial(
        claimed_tests=tests,
        params=resolved.num_params,
        claimed_params=int(claims["params"]),
        flops=resolved.train_flops_per_token * resolved.tokens_per_step,
        clean_flops=clean.claims["flops"],
        claimed_flops=claims["flops"],
        clean_cpu_s=clean.update_s,
        cpu_s=cpu_s,
        walls=clean.level,
        problems=tuple(problems),
    )


def _tests(diff: str, is_weaker_allowed: bool) -> tuple[str, list[str]]:
    """What pytest's last line says of the patch's own tests, and whether they failed."""
    with patched_copy(diff) as code, tempfile.TemporaryDirectory(prefix="jaxlm-guest-") as folder:
        options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(code)]
        options += ["--confcutdir", str(code)]  # it may not look into the folders above
        start = f"import sys; sys.path.insert(0, {str(code)!r}); import pytest; "
        start += f"sys.exit(pytest.main({[*options, str(code / TESTS)]!r}))"
        command = [sys.executable, "-c", start]
        found = sandbox.run(command, Path(folder), [code], TEST_LIMITS, is_weaker_allowed)
    said = (found.output.strip().splitlines() or ["nothing"])[-1]
    if found.ended_by is not None:
        return plain(said, 100), [f"its tests were ended: too much {found.ended_by}"]
    return plain(said, 100), [f"its tests fail: {plain(said, 100)}"] if found.code else []


def _cost_problems(
    claims: dict[str, float],
    clean: dict[str, float],
    cpu_s: float,
    clean_cpu_s: float,
    updates: int,
) -> Iterator[str]:
    if claims["flops"] > FAIR * clean["flops"]:
        share = claims["flops"] / max(clean["flops"], 1.0)
        yield f"its update takes {share:.2f} of the clean code's FLOPs; more than {FAIR} is unfair"
    if cpu_s * updates > LEAST_S and cpu_s > FAIR_TIME * clean_cpu_s:
        share = cpu_s / max(clean_cpu_s, 1e-9)
        yield f"its update takes {share:.2f} of the clean code's processor time, more than {FAIR_TIME}"


def _percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f} %" if base else "nothing to compare with"
