# SPDX-License-Identifier: Apache-2.0
"""Judges a model whose own forward pass is not trusted: bits per byte that it cannot talk itself into.

The text stays outside.  The sandbox gets the tokens of many pieces of validation text column by column,
and for each column must say its log-probabilities of the whole vocabulary before it gets the next: it
cannot peek at what it has not been given.  Each answer has to be a distribution, and is scored here.
Last, some pieces are asked again of a new sandbox, in other company: an answer that depends on more than
its own piece (text seen before, a clock, chance) shows.

Legend: V vocabulary
"""

import dataclasses
import functools
import math
import random
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import RunConfig, resolve
from jaxlm.core.canonical import file_sha256
from jaxlm.core.errors import RunError
from jaxlm.data.loader import BatchSource
from jaxlm.data.prepare import prepare
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.evaluate import EvalTotals
from jaxlm.research.evaluator import check_rows, validation_text
from jaxlm.research.fingerprint import evaluator, run_id
from jaxlm.research.jobs import JobRun
from jaxlm.research.patch.diff import patch_id
from jaxlm.research.patch.host import (
    Guest,
    converse,
    finish,
    guest_config,
    new_guest,
    read,
    write,
)
from jaxlm.research.sandbox.sandbox import Limits, Process
from jaxlm.train.run_dir import CHECKPOINTS, load_config, read_json

ROWS = 64  # pieces at a time
NORMAL = 1e-3  # nats: how far a distribution's mass may lie from 1
SAME = {"float32": 1e-3, "bfloat16": 0.1}  # nats: between two answers to the same question
LIMITS = Limits(wall_s=7200, cpu_s=7200)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of validation text that is predicted from its own beginning only."""

    corpus: str
    tokens: np.ndarray
    targets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
    nats: np.ndarray  # of each target
    correct: int


Ask = Callable[[Sequence[Piece]], tuple[list[Scored], str]]  # of a new guest; and its walls


def judge_patched(run: JobRun) -> dict[str, Any]:
    """As evaluator.evaluate_run, with the walls that stood and the pieces that were asked twice.

    Raises RunError for a run that is not the expected one, and for answers that are no fair ones.
    """
    assert run.diff is not None
    config, directory = load_config(run.directory), run.directory
    data = prepare(config.data)
    if run_id(config, data.data_id, patch_id(run.diff)) != run.run_id:
        raise RunError(
            f"{directory} does not hold run {run.run_id[:12]}: config, code, patch or data changed"
        )
    steps = config.train.num_steps
    check_rows(directory, steps)
    params = directory / CHECKPOINTS / f"{steps:08d}" / "params.npy"
    manifest = read_json(params.with_name("manifest.json")) or {}
    if not params.exists() or manifest.get("params_sha256") != file_sha256(params):
        raise RunError(f"{directory}: its parameters are not those that training left")
    pieces = list(_pieces(BatchSource(data, config.data, split="valid"), config))
    ask = functools.partial(_asked, run, config, params)
    scored, again, level = score(ask, pieces, SAME[config.model.compute_dtype])
    tokenizer = load_tokenizer(data.tokenizer_path, sha256=data.tokenizer_sha256)
    metrics = _metrics(pieces, scored, tokenizer.bytes_per_token_V)
    resolved = resolve(config, 1)
    return metrics | {
        "run_id": run.run_id,
        "step": steps,
        "flops": resolved.train_flops_per_token * resolved.total_tokens,
        "checkpoint_sha256": file_sha256(params.with_name("manifest.json")),
        "params_sha256": manifest["params_sha256"],
        "valid_sha256": validation_text(data),
        "evaluator": evaluator(),
        "walls": level,
        "asked_twice": again,
    }


def _pieces(source: BatchSource, config: RunConfig) -> Iterator[Piece]:
    for corpus in config.data.corpora:
        for batch in source.valid_batches(corpus.name):
            for row in range(len(batch["tokens"])):
                segments = batch["segment_ids"][row]
                for i in range(1, int(segments.max()) + 1):
                    of = segments == i
                    yield Piece(corpus.name, batch["tokens"][row][of], batch["targets"][row][of])


def score(ask: Ask, pieces: Sequence[Piece], same: float) -> tuple[list[Scored], int, str]:
    """Of each piece its score; how many were asked again of a new guest; the walls that stood.

    same: nats that may lie between two answers to one question
    Raises RunError for answers that are no fair ones.
    """
    scored, level = ask(pieces)
    draw = random.Random(secrets.randbits(64))
    again = draw.sample(range(len(pieces)), min(ROWS, len(pieces)))
    answers, _ = ask([pieces[i] for i in again])
    for i, answer in zip(again, answers, strict=True):
        difference = float(np.abs(answer.nats - scored[i].nats).max())
        if difference > same:
            raise RunError(
                f"the patched code gave two answers to one question, {difference:.3g} nats apart: what it "
                "predicts depends on more than the text before it"
            )
    return scored, len(again), level


def _asked(
    run: JobRun, config: RunConfig, params: Path, pieces: Sequence[Piece]
) -> tuple[list[Scored], str]:
    spec = {
        "what": "predict",
        "config": guest_config(config),
        "vocab": config.model.vocab_size,
        "rows": ROWS,
        "params": params.resolve(),
    }
    with new_guest(run.diff, spec, LIMITS, run.is_weaker_allowed, [params]) as guest:
        return ask_guest(guest, pieces, config.model.vocab_size)


def ask_guest(guest: Guest, pieces: Sequence[Piece], V: int) -> tuple[list[Scored], str]:
    """The score of each piece, long ones together so that few columns are padding; and the walls."""
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].tokens))
    found: dict[int, Scored] = {}

    def talk(process: Process) -> None:
        for begin in range(0, len(order), ROWS):
            mine = order[begin : begin + ROWS]
            scores = _ask(process, [pieces[i] for i in mine], V)
            found.update(zip(mine, scores, strict=True))
        finish(process)

    ended = converse(guest, talk)
    return [found[i] for i in range(len(pieces))], ended.level


def _ask(process: Process, pieces: Sequence[Piece], V: int) -> list[Scored]:
    """One talk over up to ROWS pieces.  Column t + 1 leaves only when the answer to t is here."""
    length = max(len(piece.tokens) for piece in pieces)
    write(process, struct.pack("<i", length))
    nats: list[list[float]] = [[] for _ in pieces]
    correct = [0] * len(pieces)
    for t in range(length):
        column = np.zeros(ROWS, np.int32)
        column[: len(pieces)] = [p.tokens[t] if t < len(p.tokens) else 0 for p in pieces]
        write(process, column.tobytes())
        answer = np.frombuffer(read(process, 4 * ROWS * V), "<f4").reshape(ROWS, V)
        for i, piece in enumerate(pieces):
            if t < len(piece.targets):
                log_p = distribution(answer[i])
                nats[i].append(float(-log_p[piece.targets[t]]))
                correct[i] += int(log_p.argmax() == piece.targets[t])  # all equal: one guess
    return [Scored(np.array(n), c) for n, c in zip(nats, correct, strict=True)]


def distribution(log_p: np.ndarray) -> np.ndarray:
    """In f64, its mass exactly 1.  Raises RunError for what is no distribution."""
    log_p = log_p.astype(np.float64)
    if not np.isfinite(log_p).all():
        raise RunError("the patched code predicts something that is not finite")
    mass = float(np.logaddexp.reduce(log_p))
    if abs(mass) > NORMAL:
        raise RunError(
            f"the patched code's probabilities sum to {math.exp(min(mass, 700)):.4g}, not to 1"
        )
    return log_p - mass


def _metrics(
    pieces: Sequence[Piece], scored: Sequence[Scored], bytes_V: np.ndarray
) -> dict[str, float]:
    names = list(dict.fromkeys(piece.corpus for piece in pieces))
    totals = {name: _total(name, pieces, scored, bytes_V) for name in names}
    first, *others = totals.values()
    metrics = sum(others, first).metrics()
    for name, total in totals.items() if others else ():
        metrics |= {f"{metric}@{name}": value for metric, value in total.metrics().items()}
    return metrics


def _total(
    corpus: str, pieces: Sequence[Piece], scored: Iterable[Scored], bytes_V: np.ndarray
) -> EvalTotals:
    mine = [(p, s) for p, s in zip(pieces, scored, strict=True) if p.corpus == corpus]
    return EvalTotals(
        nats=math.fsum(float(x) for _, s in mine for x in s.nats),
        correct=float(sum(s.correct for _, s in mine)),
        tokens=float(sum(len(p.targets) for p, _ in mine)),
        bytes=float(sum(int(bytes_V[p.targets].sum()) for p, _ in mine)),
    )
