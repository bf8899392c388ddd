# SPDX-License-Identifier: Apache-2.0
"""A folder as a newcomer has it: some text, a config, a prepared cache and a run; and bad luck."""

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxlm.bench.attacks.world import made_up_texts
from jaxlm.cli.main import main
from tests.jaxlm.data.corpora import write_jsonl

Setup = Callable[[], object]

ROOT = Path(__file__).parents[2]
CONFIG = """
ModelConfig.vocab_size = 320
ModelConfig.num_layers = 1
ModelConfig.embed_dim = 16
ModelConfig.num_heads = 2
ModelConfig.ffn_dim = 16
DataConfig.corpora = [@CorpusConfig()]
CorpusConfig.name = "text"
CorpusConfig.source = "text"
DataConfig.seq_len = 32
DataConfig.batch_size = 8
DataConfig.valid_frac = 0.2
TokenizerConfig.vocab_size = 320
OptimConfig.peak_lr = 1e-2
TrainConfig.num_steps = 4
TrainConfig.checkpoint_every = 2
TrainConfig.sample_prompts = ("la ",)
TrainConfig.sample_tokens = 4
"""


def furnish(folder: Path) -> None:
    """text/docs.jsonl and base.gin; all paths are relative to the folder."""
    write_jsonl(folder / "text" / "docs.jsonl", made_up_texts())
    (folder / "base.gin").write_text(CONFIG)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def tree(*roots: str) -> dict[str, str]:
    """Every path below the folders, with the sha256 of each file.

    Left out: lock files, which hold nothing, and the cache's memory of the sources' hashes.
    """
    found = [p for root in roots for p in Path(root).rglob("*")]
    paths = [p for p in found if p.name != ".lock" and p.parent.name != "sources"]
    hashed = lambda p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
    return {str(p): hashed(p) for p in paths}


def refused(argv: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on stderr of a command that must fail and leave everything as it was."""
    before = tree("data", "runs")
    capfd.readouterr()
    assert main(argv) == code
    err = capfd.readouterr().err
    assert err.startswith("jaxlm: error: "), err
    assert err.count("\n") == 1, err
    after = tree("data", "runs")
    assert {path: after.get(path) for path in before} == before, "something was lost or altered"
    added = [path for path in after.keys() - before.keys() if not path.startswith("data/")]
    assert not added and not list(Path().glob("data/.unfinished*")), added
    return err


def process(*argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """A real `jaxlm` in the current folder."""
    return subprocess.run(
        [sys.executable, "-m", "jaxlm.cli.main", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A disk of its own at `path`, of few kilobytes; skips the test where none can be mounted."""
    path.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def write(path: str, content: str | bytes) -> Setup:
    data = content.encode() if isinstance(content, str) else content

    def do() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return do


def only(pattern: str) -> Path:
    (path,) = Path().glob(pattern)
    return path


def cut(pattern: str) -> Setup:
    return lambda: os.truncate(only(pattern), only(pattern).stat().st_size // 2)


def alter(pattern: str) -> Setup:
    """One letter of a piece becomes another: still a tokenizer, of the same size."""

    def do() -> None:
        data = bytearray(only(pattern).read_bytes())
        at = len(data) // 2
        while not chr(data[at]).isalpha():
            at += 1
        data[at] ^= 1
        only(pattern).write_bytes(data)

    return do


def unfinished(setup: Setup | None = None) -> Setup:
    """runs/done as a killed process leaves it, and then something else happens."""

    def do() -> None:
        Path("runs/done/summary.json").unlink()
        if setup:
            setup()

    return do


def replace(path: str, old: str, new: str) -> Setup:
    def do() -> None:
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new, 1))

    return do


def damage_checkpoints() -> None:
    for path in Path("runs/done/checkpoints").glob("*/state/_METADATA"):
        path.write_text("x")


def one_document() -> None:
    texts = [json.loads(line)["text"] for line in Path("text/docs.jsonl").read_text().splitlines()]
    write("text/docs.jsonl", json.dumps({"text": " ".join(texts)}) + "\n")()


def truncated_gzip() -> None:
    lines = "".join(json.dumps({"text": f"{i} " * i}) + "\n" for i in range(300)).encode()
    Path("text/more.jsonl.gz").write_bytes(gzip.compress(lines)[:-100])


def truncated_zst() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.output_stream("text/more.jsonl.zst", compression="zstd") as file:
        file.write(os.urandom(3000).hex().encode())
    cut("text/more.jsonl.zst")()
