# SPDX-License-Identifier: Apache-2.0
"""The edge where gin text becomes a frozen RunConfig; the only importer of gin.

gin's language is used, its registry is not: nothing is injected anywhere, and no state stays
behind.  `OptimConfig.peak_lr = 3e-4` sets a field of the one OptimConfig in the tree;
`web/CorpusConfig.source = "web/*.jsonl"` sets one of several, which `@web/CorpusConfig()` names;
`width = 64` defines a macro that `%width` reads; `include "base.gin"` reads another file first.
"""

import functools
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gin import config_parser

from jaxlm.config import RunConfig
from jaxlm.core.errors import ConfigError
from jaxlm.core.typed import coerce, field_types, from_dict, is_config, nearest


class _Reference(NamedTuple):
    selector: str
    evaluate: bool


class _Macro(NamedTuple):
    name: str


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        return _Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> _Macro:
        return _Macro(macro_name)


class _Binding(NamedTuple):
    value: Any
    where: str  # "configs/x.gin:12" or "--set"


class _Statements:
    """All bindings of some files and overrides; a later one replaces an earlier one."""

    def __init__(self) -> None:
        self.bindings: dict[tuple[str, str], dict[str, _Binding]] = {}  # (scope, class) -> fields
        self.macros: dict[str, _Binding] = {}

    def read_file(self, path: Path, including: tuple[Path, ...] = ()) -> None:
        asked_by = f", included by {including[-1]}" if including else ""
        if path.resolve() in [p.resolve() for p in including]:
            raise ConfigError(f"config {path} includes itself{asked_by}; remove one include")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise ConfigError(
                f"cannot read config {path}{asked_by}: {e.strerror}; check the path"
            ) from e
        except UnicodeDecodeError as e:
            raise ConfigError(f"config {path} is not UTF-8 text (byte {e.start})") from e
        self.read_text(text, str(path), (*including, path))

    def read_text(self, text: str, origin: str, including: tuple[Path, ...] = ()) -> None:
        seen: dict[tuple[str, str, str], str] = {}
        try:
            for s in config_parser.ConfigParser(text, _Delegate()):
                where = f"{origin}:{s.location.line_num}" if including else origin
                if isinstance(s, config_parser.IncludeStatement):
                    folder = including[-1].parent if including else Path()
                    self.read_file(folder / s.filename, including)
                elif isinstance(s, config_parser.BindingStatement):
                    key = (s.scope, s.selector, s.arg_name)
                    if key in seen:
                        raise ConfigError(
                            f"{where} sets {s.selector} {s.arg_name} again; first set at {seen[key]}"
                        )
                    seen[key] = where
                    self._bind(s, where)
                elif not isinstance(s, config_parser.BlockDeclaration):
                    raise ConfigError(f"{where}: only bindings and include are allowed, not import")
        except (SyntaxError, ValueError, tokenize.TokenError) as e:
            if isinstance(e, ConfigError):
                raise
            line_number = getattr(e, "lineno", None)
            line = f":{line_number}" if including and line_number else ""
            said = str(e) if isinstance(e, UnicodeError) or not e.args else str(e.args[0])
            # Python's inner names first, then the word that was meant
            word = re.fullmatch(r"malformed node .*\s+Failed to parse token ('.*')", said)
            reason = f"{word[1]} is no value" if word else said.splitlines()[0]
            raise ConfigError(
                f"{origin}{line}: not gin syntax: {reason} (strings need quotes)"
            ) from e

    def _bind(self, s: Any, where: str) -> None:
        if not s.arg_name:
            self.macros[f"{s.scope}/{s.selector}" if s.scope else s.selector] = _Binding(
                s.value, where
            )
            return
        cls = _classes().get(s.selector)
        if cls is None:
            known = _classes()
            raise ConfigError(
                f"{where}: unknown config {s.selector!r}; {nearest(s.selector, known)}"
            )
        if s.arg_name not in field_types(cls):
            hint = nearest(s.arg_name, field_types(cls))
            raise ConfigError(f"{where}: unknown key {s.selector}.{s.arg_name}; {hint}")
        self.bindings.setdefault((s.scope, s.selector), {})[s.arg_name] = _Binding(s.value, where)


class _Builder:
    """Turns statements into dataclasses, remembering which scopes and macros were asked for."""

    def __init__(self, statements: _Statements) -> None:
        self.statements = statements
        self.used = {""}
        self.read: set[str] = set()  # macros

    def build(self, cls: type, scope: str = "", within: tuple[str, ...] = ()) -> Any:
        self.used.add(scope)
        within = _deeper(within, f"@{scope}/{cls.__name__}()" if scope else f"@{cls.__name__}()")
        bound = dict(self.statements.bindings.get(("", cls.__name__), {}))
        if scope:
            bound |= self.statements.bindings.get((scope, cls.__name__), {})
        values = {}
        for name, declared in field_types(cls).items():
            if name in bound:
                value, where = bound[name]
                try:
                    values[name] = coerce(
                        self._evaluate(value, within), declared, f"{cls.__name__}.{name}"
                    )
                except ConfigError as e:
                    raise ConfigError(f"{where}: {e}") from e
            elif is_config(declared):
                values[name] = self.build(declared, within=within)
        return from_dict(cls, values)

    def _evaluate(self, value: Any, within: tuple[str, ...]) -> Any:
        if isinstance(value, _Macro):
            macros = self.statements.macros
            self.read.add(value.name)
            if value.name not in macros:
                raise ConfigError(f"undefined macro %{value.name}; {nearest(value.name, macros)}")
            return self._evaluate(macros[value.name].value, _deeper(within, f"%{value.name}"))
        if isinstance(value, _Reference):
            scope, _, name = value.selector.rpartition("/")
            if name not in _classes():
                raise ConfigError(f"unknown config @{value.selector}; {nearest(name, _classes())}")
            if not value.evaluate:
                raise ConfigError(f"write @{value.selector}() with parentheses")
            return self.build(_classes()[name], scope, within)
        if isinstance(value, list | tuple):
            return tuple(self._evaluate(v, within) for v in value)
        return value


def _deeper(within: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The names that are being evaluated, with one more.  Raises ConfigError for one among them."""
    if name in within:
        cycle = " -> ".join((*within[within.index(name) :], name))
        raise ConfigError(f"{name} refers to itself: {cycle}; give one of them a value")
    return (*within, name)


@functools.cache
def _classes(root: type = RunConfig) -> dict[str, type]:
    """Every dataclass reachable from RunConfig, by name."""
    found = {root.__name__: root}
    for declared in field_types(root).values():
        for cls in (declared, *getattr(declared, "__args__", ())):
            if is_config(cls):
                found |= _classes(cls)
    return found


def load(files: list[str], overrides: list[str], *more: tuple[str, Sequence[str]]) -> RunConfig:
    """Reads gin files in order, then `--set` overrides ("OptimConfig.peak_lr=3e-4").

    more: overrides that another option gave, with its name

    Raises ConfigError: one line with file, line, field, value and what is allowed.
    """
    statements = _Statements()
    for path in files:
        statements.read_file(Path(path))
    for option, texts in (("--set", overrides), *more):
        for text in texts:
            statements.read_text(text, f"{option} {text}")
    builder = _Builder(statements)
    config = builder.build(RunConfig)
    for (scope, name), bound in statements.bindings.items():
        if scope not in builder.used:
            where = next(iter(bound.values())).where
            raise ConfigError(
                f"{where}: nothing refers to @{scope}/{name}(); add it, or drop the scope"
            )
    for name, macro in statements.macros.items():
        if (
            macro.where.startswith("--") and name not in builder.read
        ):  # a file may have some to spare
            fields = [
                f"{cls}.{name}"
                for cls, declared in _classes().items()
                if name in field_types(declared)
            ]
            hint = f"did you mean {' or '.join(fields)}?" if fields else "write Config.field=VALUE"
            raise ConfigError(f"{macro.where}: nothing reads a macro %{name}; {hint}")
    return config
