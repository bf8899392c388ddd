# SPDX-License-Identifier: Apache-2.0
"""All policies by name; the first is the default, greedy the rival that it is measured against."""

from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import nearest
from jaxlm.research.policies.adaptive import adaptive
from jaxlm.research.policies.base import Policy
from jaxlm.research.policies.early_stop import early_stop
from jaxlm.research.policies.factorial import factorial, factorial_foldover, prune_and_confirm
from jaxlm.research.policies.greedy import greedy, greedy_margin, replicate_all
from jaxlm.research.policies.halving import asha, halving

POLICIES: dict[str, Policy] = {
    "adaptive": adaptive,
    "greedy": greedy,
    "greedy-margin": greedy_margin,
    "replicate-all": replicate_all,
    "halving": halving,
    "asha": asha,
    "early-stop": early_stop,
    "factorial": factorial,
    "factorial-foldover": factorial_foldover,
    "prune-and-confirm": prune_and_confirm,
}
CONFIRM = frozenset({"adaptive", "factorial", "factorial-foldover", "prune-and-confirm"})
COMBINE = CONFIRM  # they put ideas together that nothing has kept yet
RIVAL = "greedy"


def policy(name: str) -> Policy:
    """Raises ConfigError, with the nearest name, for one that is not there."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} is not known; {nearest(name, POLICIES)}")
    return POLICIES[name]
