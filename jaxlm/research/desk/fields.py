# SPDX-License-Identifier: Apache-2.0
"""Which fields a proposal may change, and their safe way into gin text.

Left out is what would change the question instead of the answer: validation data and tokenizer,
the length of rows, seeds, and everything operational.  Nothing here reads gin: one field and one
expression become one statement, and the edge (cli/gin_edge.py) does the rest.
"""

import ast
import dataclasses
from collections.abc import Iterator

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import field_types, nearest
from jaxlm.data.config import DataConfig
from jaxlm.model.config import ModelConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.research.desk.records import Changes
from jaxlm.research.desk.views import FieldView
from jaxlm.train.config import TrainConfig

MOST_FIELDS = 8  # of one change
_NOT = {
    "ModelConfig": {"vocab_size", "attention_impl", "loss_impl", "scan_unroll"},
    "OptimConfig": {"groups"},
}
_ONLY = {"DataConfig": {"batch_size"}, "TrainConfig": {"num_steps", "num_micro_batches"}}
_SECTIONS: dict[str, type] = {
    "ModelConfig": ModelConfig,
    "OptimConfig": OptimConfig,
    "DataConfig": DataConfig,
    "TrainConfig": TrainConfig,
}
MOST_CHARS = 80  # of one value


def proposable() -> Iterator[tuple[str, str]]:
    """("OptimConfig.peak_lr", "peak_lr") ..., in the order of the classes."""
    for cls, section in _SECTIONS.items():
        for field in dataclasses.fields(section):
            if field.name in _ONLY.get(cls, {field.name}) - _NOT.get(cls, set()):
                yield f"{cls}.{field.name}", field.name


def views(config: RunConfig) -> list[FieldView]:
    """Each proposable field with its type, and its value in a config."""
    found = []
    for field, name in proposable():
        cls = field.partition(".")[0]
        part = getattr(config, cls.removesuffix("Config").lower())
        declared = field_types(_SECTIONS[cls])[name]
        shown = getattr(declared, "__name__", "") if isinstance(declared, type) else str(declared)
        found.append(FieldView(field, shown.replace("typing.", ""), repr(getattr(part, name))))
    return found


def statements(changes: Changes) -> list[str]:
    """Gin text of a change, a statement per field.

    Raises ConfigError for a field that may not be proposed (the nearest named), for an expression
    that is more than one literal, and for a change of too many fields.
    """
    if not 1 <= len(changes) <= MOST_FIELDS:
        raise ConfigError(f"a change sets 1 to {MOST_FIELDS} fields, got {len(changes)}")
    known = [field for field, _ in proposable()]
    for field, value in changes.items():
        if field not in known:
            raise ConfigError(f"{field[:80]!r} cannot be proposed; {nearest(field[:80], known)}")
        if not _is_literal(value):
            raise ConfigError(
                f"{field}: {value[:80]!r} is no single value; write a literal such as 2e-3 or 'muon'"
            )
    return [f"{field} = {value}" for field, value in changes.items()]


def _is_literal(text: str) -> bool:
    """A number, a string, None, True, False, or a tuple or list of those."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return len(text) <= MOST_CHARS and text.isprintable() and "{" not in text
