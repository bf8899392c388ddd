# SPDX-License-Identifier: Apache-2.0
"""Range checks shared by the config dataclasses: one wording for every mistake."""

from typing import Any

from jaxlm.core.errors import ConfigError


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises ConfigError("<field> must be <allowed>, got <value>") unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field} must be {allowed}, got {value!r}")
