# SPDX-License-Identifier: Apache-2.0
"""Plain values into the types that a config dataclass declares.  Standard library only."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeGuard

from jaxlm.core.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean X?', or the whole list when nothing is near."""
    known = sorted(known)
    if not known:
        return "none are known"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def is_config(declared: Any) -> TypeGuard[type]:
    """Whether a declared type is a config dataclass."""
    return isinstance(declared, type) and dataclasses.is_dataclass(declared)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Name -> declared type of every field of a config dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def from_dict(cls: Any, values: dict[str, Any], path: str = "") -> Any:
    """Builds a config dataclass from plain values, e.g. a parsed config.json.

    Raises ConfigError, naming the field, for an unknown or missing field or a value of another type.
    """
    path = path or cls.__name__
    declared = field_types(cls)
    for name in values:
        if name not in declared:
            raise ConfigError(f"unknown field {path}.{name}; {nearest(name, declared)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        names = ", ".join(f"{path}.{name}" for name in missing)
        raise ConfigError(
            f"{names} must be set: {'it has' if len(missing) == 1 else 'they have'} no default"
        )
    return cls(**{k: coerce(v, declared[k], f"{path}.{k}") for k, v in values.items()})


def coerce(value: Any, declared: Any, path: str) -> Any:
    """`value` as the declared type: lists become tuples, ints floats, dicts dataclasses.

    Raises ConfigError for anything that would be a guess (a string for a number, 1e4 for an int).
    """
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if is_config(declared):
        if isinstance(value, declared):
            return value
        if isinstance(value, dict):
            return from_dict(declared, value, path)
    elif origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        hint = (
            nearest(value, args)
            if isinstance(value, str)
            else f"known: {', '.join(map(repr, args))}"
        )
        raise ConfigError(
            f"{path} must be one of {', '.join(map(repr, args))}, got {value!r}; {hint}"
        )
    elif origin in (types.UnionType, typing.Union):  # only "X | None" is used
        if value is None:
            return None
        return coerce(value, next(a for a in args if a is not types.NoneType), path)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
            if len(kinds) == len(value):
                items = zip(value, kinds, strict=True)
                return tuple(coerce(v, kind, f"{path}[{i}]") for i, (v, kind) in enumerate(items))
    elif declared is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise ConfigError(f"{path} must be a finite number, got {value!r}")
    elif declared in (int, str, bool) and type(value) is declared:
        return value
    raise ConfigError(f"{path} must be of type {_name(declared)}, got {value!r}")


def _name(declared: Any) -> str:
    return (
        declared.__name__
        if isinstance(declared, type) and not typing.get_args(declared)
        else str(declared)
    )
