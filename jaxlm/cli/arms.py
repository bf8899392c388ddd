# SPDX-License-Identifier: Apache-2.0
"""Arms from the command line: what is varied, set by set, at one scale or at two."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.research.budget import run_flops
from jaxlm.research.plan import Setting
from jaxlm.research.records import BASELINE, check_name

Changes = dict[str, str]  # field -> gin expression


@dataclasses.dataclass(frozen=True)
class Base:
    """Where every arm begins: gin files and overrides."""

    files: tuple[str, ...]
    overrides: tuple[str, ...]
    promoted: tuple[str, ...] = ()

    def config(self, changes: Changes | None = None, option: str = "--vary") -> RunConfig:
        """option: that gave the changes, for an error's line"""
        from jaxlm.cli.gin_edge import load

        texts = [f"{field} = {value}" for field, value in (changes or {}).items()]
        more = (("--promote", self.promoted), (option, texts))
        return load(list(self.files), list(self.overrides), *more)

    def larger(self, promote: Sequence[str]) -> "Base":
        """With gin files and FIELD=VALUE on top.  Raises ConfigError where a run would cost no more."""
        files = tuple(text for text in promote if text.endswith(".gin"))
        texts = tuple(text for text in promote if not text.endswith(".gin"))
        found = Base((*self.files, *files), self.overrides, texts)
        cost, here = run_flops(found.config()), run_flops(self.config())
        if cost <= here:
            raise ConfigError(
                f"--promote {' '.join(promote)} is no larger scale: a run has {cost:.3g} FLOPs, the "
                f"config itself {here:.3g}; give a config of more layers, width or updates"
            )
        return found


def arms_of(vary: Sequence[str], ideas: Sequence[str]) -> dict[str, Changes]:
    """By name: every combination of the varied values, and every idea, which may set several fields."""
    varied = _split_all(vary)
    products = itertools.product(*varied.values()) if varied else ()
    return _named([dict(zip(varied, values, strict=True)) for values in products], ideas)


def ideas_of(vary: Sequence[str], ideas: Sequence[str]) -> dict[str, Changes]:
    """By name: each varied value alone, for policies, which put ideas together themselves."""
    varied = _split_all(vary).items()
    return _named([{field: value} for field, values in varied for value in values], ideas)


def _named(varied: Sequence[Changes], ideas: Sequence[str]) -> dict[str, Changes]:
    found: dict[str, Changes] = {}
    for changes in varied:
        name = _name(changes)
        if name in found:
            raise ConfigError(
                f"--vary names {name} twice: the same config, or fields of one name; nothing was run: "
                "give one of them as --idea 'NAME: FIELD=VALUE'"
            )
        check_name(name, "--vary")
        found[name] = changes
    for text in ideas:
        name, changes = _split_idea(text)
        check_name(name, f"--idea {text!r}")
        if name in found:
            raise ConfigError(f"--idea {text!r}: there is an arm {name!r} already")
        found[name] = changes
    return found


def settings(base: Base, arms: dict[str, Changes], ideas: Sequence[str]) -> list[Setting]:
    """The baseline, then every arm that is not the baseline; ideas: as they were given."""
    config, named = base.config(), {_split_idea(text)[0] for text in ideas}
    found = [Setting(BASELINE, {}, config)]
    for name, changes in arms.items():
        own = base.config(changes, "--idea" if name in named else "--vary")
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
    parts = [part for part in _cut(rest if colon else text, ";") if part]
    pairs = [part.partition("=") for part in parts]
    if not pairs or any(not equals or not value.strip() for _, equals, value in pairs):
        raise ConfigError(
            f"--idea {text!r}: write NAME: FIELD=VALUE; FIELD=VALUE, such as "
            "'lion: OptimConfig.name=\"lion\"; OptimConfig.peak_lr=8e-4'"
        )
    changes: Changes = {}
    for field, _, value in pairs:
        if field.strip() in changes:
            raise ConfigError(f"--idea {text!r} sets {field.strip()} twice; give it one value")
        changes[field.strip()] = value.strip()
    return (name.strip() if colon else _name(changes)), changes


def _split_all(vary: Sequence[str]) -> dict[str, list[str]]:
    """Values by field."""
    found: dict[str, list[str]] = {}
    for text in vary:
        field, values = _split_values(text)
        if field in found:
            both = ",".join([*found[field], *values])
            raise ConfigError(
                f"--vary {field} is given twice; put all its values into one list: {field}=[{both}]"
            )
        found[field] = values
    return found


def _split_values(text: str) -> tuple[str, list[str]]:
    """("OptimConfig.peak_lr", ["1e-3", "2e-3"])."""
    field, equals, values = text.partition("=")
    values = values.strip()
    if not equals or not values.startswith("[") or not values.endswith("]"):
        raise ConfigError(f"--vary {text!r}: write FIELD=[A,B], such as OptimConfig.peak_lr=[1e-3]")
    parts = _cut(values[1:-1], ",")
    if parts == [""]:
        raise ConfigError(f"--vary {text!r} names no value")
    if "" in parts:
        raise ConfigError(f"--vary {text!r}: a value is missing between two commas; write [A,B]")
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
    return [part.strip() for part in parts]
