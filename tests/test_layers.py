# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check: who imports whom, when, and how files look."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = sorted(p for top in ("jaxlm", "pallas_kernels") for p in (ROOT / top).rglob("*.py"))
PYTHON = sorted([*SOURCE, *(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
MODULES = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in SOURCE
]
STDLIB_ONLY = ["jaxlm.config", *(m for m in MODULES if m.endswith(".config") and m.count(".") > 1)]


def run_fresh(code: str, *arguments: str) -> str:
    """What `code` prints in an interpreter that has imported nothing yet."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_keep_the_contracts_of_setup_cfg() -> None:
    """In a process of its own: the linter silences the loggers that other tests read."""
    run_fresh(
        "import sys; from importlinter.cli import lint_imports\n"
        "sys.exit(lint_imports(sys.argv[1], no_cache=True, no_logo=True))",
        str(ROOT / "setup.cfg"),
    )


@pytest.mark.slow
def test_every_module_can_be_the_first_that_is_imported() -> None:
    code = """
import importlib, sys
for module in sys.argv[1:]:
    for name in [n for n in sys.modules if n.partition(".")[0] in ("jaxlm", "pallas_kernels")]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except ImportError as e:
        print(f"{module}: {e}")
"""
    assert run_fresh(code, *MODULES) == ""


FIND_IMPORTED = """
import importlib, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


@pytest.mark.parametrize("module", STDLIB_ONLY)
def test_configs_need_only_the_standard_library(module: str) -> None:
    imported = set(run_fresh(FIND_IMPORTED, module).split())
    assert imported - sys.stdlib_module_names == {"jaxlm"}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    imported = set(run_fresh(FIND_IMPORTED, "jaxlm.cli.main").split())
    heavy = {"jax", "numpy", "flax", "optax", "orbax", "grain", "sentencepiece", "tensorboardX"}
    assert "jaxlm" in imported
    assert not imported & heavy


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    long = []
    for path in PYTHON:
        text = path.read_text()
        most = 30 if path.is_relative_to(ROOT / "tests") else 60
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        long += [f"{path}: {f.name}" for f in functions if f.end_lineno - f.lineno >= most]
        long += [f"{path}"] if len(text.splitlines()) > 400 else []
    assert long == []


def test_files_start_with_their_licence_and_packages_are_empty() -> None:
    spdx = "# SPDX-License-Identifier: Apache-2.0\n"
    texts = {path: path.read_text() for path in PYTHON}
    assert [p for p, text in texts.items() if p.name == "__init__.py" and text] == []
    assert [p for p, text in texts.items() if text and not text.startswith(spdx)] == []


def unexplained_letters(source: str) -> set[str]:
    """Dimension letters of names like `tokens_BT` that no `Legend: B batch  T positions` has."""
    tree = ast.parse(source)
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    suffixes = [re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z]+)", name) for name in names]
    _, _, legend = (ast.get_docstring(tree) or "").partition("Legend:")
    explained = re.findall(r"\b[A-Z]\b", legend.partition("\n\n")[0])
    return {letter for match in suffixes if match for letter in match[1]} - set(explained)


def test_dimension_letters_are_in_the_legend_of_their_file() -> None:
    letters = {path: unexplained_letters(path.read_text()) for path in SOURCE}
    assert {path: found for path, found in letters.items() if found} == {}
    assert unexplained_letters('"""Legend: B batch"""\ntokens_BT = 1') == {"T"}


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = ("jaxlm", "pallas_kernels", "scripts", "configs", "constraints", "docs", "notebooks")
    files = [p for name in folders for p in (ROOT / name).rglob("*")]
    files += [p for p in ROOT.iterdir() if p.suffix in (".md", ".toml", ".cfg", ".yaml")]
    text_files = [p for p in files if p.is_file() and p.suffix not in (".pyc", ".png")]
    bad = re.compile(r"/(root|home|work|Users)/\w|pypi\.org|pythonhosted|--(extra-)?index-url")
    found = [p.name for p in text_files if bad.search(p.read_text(encoding="utf-8"))]
    assert text_files
    assert found == []
