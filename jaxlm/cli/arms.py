# SPDX-License-Identifier: Apache-2.0
"""Arms from the command line: what is varied, set by set, at one scale or at two."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.research.budget import run_flops
from jaxlm.research.plan import Setting
from jaxlm.research.records import BASELINE

Changes = dict[str, str]  # field -> gin expression


@dataclasses.dataclass(frozen=True)
class Base:
    """Where every arm begins: gin files and overrides."""

    files: tuple[str, ...]
    overrides: tuple[str, ...]

    def config(self, changes: Changes | None = None) -> RunConfig:
        from jaxlm.cli.gin_edge import load

        texts = [f"{field} = {value}" for field, value in (changes or {}).items()]
        return load(list(self.files), [*self.overrides, *texts])

    def larger(self, promote: Sequence[str]) -> "Base":
        """With gin files and FIELD=VALUE on top.  Raises ConfigError where a run would cost no more."""
        files = tuple(text for text in promote if text.endswith(".gin"))
        texts = tuple(text for text in promote if not text.endswith(".gin"))
        found = Base((*self.files, *files), (*self.overrides, *texts))
        cost, here = run_flops(found.config()), run_flops(self.config())
        if cost <= here:
            raise ConfigError(
                f"--promote {' '.join(promote)} is no larger scale: a run has {cost:.3g} FLOPs, the "
                f"config itself {here:.3g}; give a config of more layers, width or updates"
            )
        return found


def arms_of(vary: Sequence[str], ideas: Sequence[str]) -> dict[str, Changes]:
    """By name: every combination of the varied values, and every idea, which may set several fields."""
    found: dict[str, Changes] = {}
    fields = [_split_values(text) for text in vary]
    for values in itertools.product(*(values for _, values in fields)) if vary else ():
        changes = dict(zip((field for field, _ in fields), values, strict=True))
        if _name(changes) in found:
            raise ConfigError(
                f"--vary names {_name(changes)} twice: the same config; nothing was run"
            )
        found[_name(changes)] = changes
    for text in ideas:
        name, changes = _split_idea(text)
        if name in found:
            raise ConfigError(f"--idea {text!r}: there is an arm {name!r} already")
        found[name] = changes
    return found


def ideas_of(vary: Sequence[str], ideas: Sequence[str]) -> dict[str, Changes]:
    """By name: each varied value alone, for policies, which put ideas together themselves."""
    single = [(field, value) for field, values in map(_split_values, vary) for value in values]
    found = {_name({field: value}): {field: value} for field, value in single}
    return found | arms_of((), ideas)


def settings(base: Base, arms: dict[str, Changes]) -> list[Setting]:
    """The baseline, then every arm that is not the baseline."""
    config = base.config()
    found = [Setting(BASELINE, {}, config)]
    for name, changes in arms.items():
        own = base.config(changes)
        if own.config_id == config.config_id:
            found[0] = Setting(BASELINE, changes, config)
        else:
            found.append(Setting(name, changes, own))
    return found


def merged(arms: Iterable[Changes]) -> Changes | None:
    """All of them on one config; None where two set one field to different values."""
    found: Changes = {}
    for changes in arms:
        if any(found.get(field, value) != value for field, value in changes.items()):
            return None
        found |= changes
    return found


def check_combine(ideas: dict[str, Changes]) -> None:
    """Raises ConfigError for ideas that exclude each other."""
    for (a, one), (b, other) in itertools.combinations(ideas.items(), 2):
        if merged([one, other]) is None:
            raise ConfigError(
                f"ideas {a!r} and {b!r} set one field to two values, and this policy puts ideas "
                "together; give one value of each field, or --policy halving, asha or greedy"
            )


def _name(changes: Changes) -> str:
    return ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in changes.items())


def _split_idea(text: str) -> tuple[str, Changes]:
    """From 'NAME: A.x=1; B.y=2', the name with its colon being optional."""
    name, colon, rest = text.partition(": ")
    pairs = [part.partition("=") for part in _cut(rest if colon else text, ";")]
    if not pairs or any(not equals or not value.strip() for _, equals, value in pairs):
        raise ConfigError(
            f"--idea {text!r}: write NAME: FIELD=VALUE; FIELD=VALUE, such as "
            "'lion: OptimConfig.name=\"lion\"; OptimConfig.peak_lr=8e-4'"
        )
    changes = {field.strip(): value.strip() for field, _, value in pairs}
    return (name.strip() if colon else _name(changes)), changes


def _split_values(text: str) -> tuple[str, list[str]]:
    """("OptimConfig.peak_lr", ["1e-3", "2e-3"])."""
    field, equals, values = text.partition("=")
    values = values.strip()
    if not equals or not values.startswith("[") or not values.endswith("]"):
        raise ConfigError(f"--vary {text!r}: write FIELD=[A,B], such as OptimConfig.peak_lr=[1e-3]")
    parts = _cut(values[1:-1], ",")
    if not parts:
        raise ConfigError(f"--vary {text!r} names no value")
    return field.strip(), parts


def _cut(text: str, at: str) -> list[str]:
    """Gin expressions, cut at a character outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == at and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]
