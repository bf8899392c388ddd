# SPDX-License-Identifier: Apache-2.0
"""A patch: a unified diff of the code that trains, and what may be known of it without running it.

It is applied to a clean copy of the code, never to the code itself.  What it touched is then found by
comparing the two trees, not by believing the diff.  Nothing of it is imported here.
Standard library and git.
"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxlm.core.canonical import content_id
from jaxlm.core.errors import ConfigError
from jaxlm.research.fingerprint import KERNELS, PACKAGE

TESTS = "tests/patches/"  # where a patch brings tests of its own
PATHS = (
    "jaxlm/nn/",
    "jaxlm/model/",
    "jaxlm/optim/",
    "jaxlm/loss.py",
    TESTS,
)  # without a person's word
MOST_BYTES = 64_000
MOST_LITERAL = 300  # characters of one literal, and elements of one display: more is data, not code
_FORBIDDEN = {
    r"GIT binary patch|Binary files ": "holds a binary file",
    r"(new file|new|old|deleted file) mode (?!100644)\d+": "sets a file's mode, or makes a link",
    r"(rename|copy) (from|to) ": "renames or copies a file",
    r"(---|\+\+\+|diff --git) .*\.\.(/|\s|$)": "leaves the tree",
    r"(---|\+\+\+) \"?/(?!dev/null)": "names an absolute path",
}


def checked_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """What a person lets patches touch, and the folder of their tests with it.

    Raises ConfigError for what is no Python file and no folder (with a / at its end) of the code.
    """
    for path in paths:
        there = PACKAGE.parent / path
        is_code = Path(path).parts[:1] in ((PACKAGE.name,), (KERNELS.name,))
        is_kind = there.is_dir() if path.endswith("/") else path.endswith(".py") and there.is_file()
        if path != TESTS and not (is_code and is_kind and ".." not in Path(path).parts):
            raise ConfigError(
                f"--patch-path {path!r} is no part of the code; name a Python file or a folder with / at "
                f"its end, such as {', '.join(PATHS[:-1])}"
            )
    return tuple(dict.fromkeys((*paths, TESTS)))


def patch_id(diff: str) -> str:
    """sha256 of the text: what a person consents to."""
    return content_id(diff)


def changed_files(diff: str, paths: Sequence[str] = PATHS) -> list[str]:
    """Paths that a patch changes or adds, in order.  Raises ConfigError for one that may not be tried."""
    with patched_copy(diff) as copy:
        changed = _differences(copy)
        problems = list(_problems(changed, copy, paths))
    if problems:
        raise ConfigError(f"the patch {problems[0]}")
    return sorted(changed)


def meaning(diff: str) -> str:
    """Equal for patches whose code differs in nothing but comments and layout; tests do not count."""
    with patched_copy(diff) as copy:
        code = [path for path in _differences(copy) if not path.startswith(TESTS)]
        trees = {
            path: ast.dump(ast.parse((copy / path).read_text(encoding="utf-8"))) for path in code
        }
        before = {path: _before(path) for path in code}
    return content_id({path: tree for path, tree in trees.items() if tree != before[path]})


NOTHING = content_id({})  # the meaning of a patch that changes no code


@contextlib.contextmanager
def patched_copy(diff: str | None) -> Iterator[Path]:
    """A folder with `jaxlm`, `pallas_kernels` and the patch's tests; None: without a patch.

    Raises ConfigError for a diff that does not apply.
    """
    with tempfile.TemporaryDirectory(prefix="jaxlm-patch-") as folder:
        copy = Path(folder) / "code"
        for package in (PACKAGE, KERNELS):
            shutil.copytree(
                package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__")
            )
        if diff is not None:
            _refuse_header(diff)
            _apply(diff, copy)
        yield copy


def _refuse_header(diff: str) -> None:
    if len(diff.encode()) > MOST_BYTES:
        raise ConfigError(f"the patch has {len(diff.encode()):,} bytes, more than {MOST_BYTES:,}")
    for pattern, problem in _FORBIDDEN.items():
        if re.search(f"^(?:{pattern})", diff, re.MULTILINE):
            raise ConfigError(f"the patch {problem}; it may only change and add Python files")


def _apply(diff: str, copy: Path) -> None:
    if shutil.which("git") is None:
        raise ConfigError("a patch needs git to be applied; install it")
    # no repository around the copy, and nobody's settings, have a say
    environment = {
        "PATH": os.environ.get("PATH", ""), "HOME": str(copy.parent), "LC_ALL": "C",
        "GIT_CEILING_DIRECTORIES": str(copy.parent), "GIT_CONFIG_NOSYSTEM": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"], cwd=copy, env=environment, check=False,
        input=diff.encode(), capture_output=True,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["git said nothing"]
        raise ConfigError(
            f"the patch does not apply to this code: {reason[0].removeprefix('error: ')[:200]}"
        )


def _differences(copy: Path) -> list[str]:
    """Paths of the copy that are not as in the clean code; of files that are gone too."""
    then = {p.relative_to(PACKAGE.parent): p for root in (PACKAGE, KERNELS) for p in _files(root)}
    now = {p.relative_to(copy): p for p in _files(copy)}
    return [
        str(path)
        for path in sorted(then.keys() | now.keys())
        if path not in then or path not in now or not _is_same(then[path], now[path])
    ]


def _files(root: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder; links are not followed."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name != "__pycache__"]
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        yield from (Path(folder) / name for name in (*files, *links))


def _is_same(a: Path, b: Path) -> bool:
    same_mode = a.lstat().st_mode == b.lstat().st_mode
    return same_mode and not b.is_symlink() and a.read_bytes() == b.read_bytes()


def _problems(changed: list[str], copy: Path, paths: Sequence[str]) -> Iterator[str]:
    for path in changed:
        there = copy / path
        if not any(path == p or (p.endswith("/") and path.startswith(p)) for p in paths):
            yield f"touches {path}; it may touch {', '.join(paths)}"
        elif there.is_symlink() or (there.exists() and not there.is_file()):
            yield f"makes {path} something else than a file"
        elif not there.exists():
            yield f"removes {path}; it may only change and add files"
        elif there.suffix != ".py":
            yield f"touches {path}, which is no Python file"
        elif there.stat().st_mode & 0o111:
            yield f"makes {path} executable"
        else:
            yield from _code_problems(path, there)
    if not any(path.startswith(TESTS) for path in changed):
        yield f"brings no test; add one as {TESTS}test_NAME.py"
    if all(path.startswith(TESTS) for path in changed):
        yield "changes no code"


def _code_problems(path: str, file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        yield f"makes {path} something that is no Python: {str(e)[:80]}"
        return
    known = set(_long_literals(_parsed(path)))
    for literal in _long_literals(tree):
        if literal not in known:
            yield f"puts a literal of {len(literal):,} characters into {path}: that is data, not code"


def _long_literals(tree: ast.AST) -> Iterator[str]:
    """Texts, numbers and displays that could hold answers; docstrings are none."""
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in told:
            # in hexadecimal: of a long number Python refuses to write the decimals
            text = f"{node.value:x}" if isinstance(node.value, int) else repr(node.value)
            if len(text) > MOST_LITERAL:
                yield text
        elif isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            parts = node.values if isinstance(node, ast.Dict) else node.elts
            if sum(isinstance(part, ast.Constant) for part in parts) > MOST_LITERAL // 6:
                yield ast.dump(node)


def _parsed(path: str) -> ast.AST:
    before = PACKAGE.parent / path
    return ast.parse(before.read_text(encoding="utf-8") if before.is_file() else "")


def _before(path: str) -> str:
    return ast.dump(_parsed(path))
