# SPDX-License-Identifier: Apache-2.0
"""Names for the trees that every layer passes on."""

from typing import Any

import jax

Params = dict[str, Any]  # nested dict of arrays
Batch = dict[str, jax.Array]  # tokens, targets, weights, segment_ids, positions; all (B, T)
Metrics = dict[str, jax.Array]  # by registered name (telemetry/registry.py)
