# SPDX-License-Identifier: Apache-2.0
"""Small corpora with long, short and empty documents."""

import json
import random
from pathlib import Path

VOCAB_SIZE = 320
_WORDS = ["def", "return", "self.x", "é", "naïve", "\u2581", "<doc>", "\t", "\n", "\r\n", "  "]


def make_texts(seed: int, count: int) -> list[str]:
    """Different texts of 0 to 400 words, most of them short, some not ASCII; the first is empty."""
    rng = random.Random(seed)
    words = _WORDS + ["".join(rng.choices("abcdefgh", k=rng.randint(1, 7))) for _ in range(60)]
    sizes = [0, *(rng.choice([1, 5, 20, 80, 400]) for _ in range(count - 1))]
    return ["".join(rng.choice(words) + " " for _ in range(n)) for n in sizes]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
