# SPDX-License-Identifier: Apache-2.0
"""The little project that is attacked: some text, a config, a desk, and people who agree."""

import dataclasses
import json
import random
from pathlib import Path

from jaxlm.research.desk import person
from jaxlm.research.desk.desk import Desk, Load
from jaxlm.research.desk.records import Project

CONFIG = """
ModelConfig.vocab_size = 320
ModelConfig.num_layers = 1
ModelConfig.embed_dim = 16
ModelConfig.num_heads = 2
ModelConfig.ffn_dim = 32
ModelConfig.activation = "gelu"
ModelConfig.attention_impl = "reference"
ModelConfig.loss_impl = "reference"
DataConfig.corpora = [@CorpusConfig()]
CorpusConfig.name = "text"
CorpusConfig.source = "FOLDER/text"
DataConfig.cache_dir = "FOLDER/data"
DataConfig.seq_len = 32
DataConfig.batch_size = 8
DataConfig.valid_frac = 0.2
TokenizerConfig.vocab_size = 320
OptimConfig.peak_lr = 1e-2
TrainConfig.num_steps = 6
TrainConfig.checkpoint_every = 6
TrainConfig.probe_every = None
"""


@dataclasses.dataclass(frozen=True)
class World:
    """load: reads gin; given by the command line, the only one that knows gin."""

    folder: Path  # of text and config, the same for all attacks
    load: Load

    @property
    def gin(self) -> str:
        return str(self.folder / "base.gin")


def made_up_texts() -> list[str]:
    """150 documents of a few to a few hundred words out of 300; always the same."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=rng.choice([3, 10, 60, 200]))) for _ in range(150)]


def furnish(folder: Path, load: Load) -> World:
    """Text of 150 made-up documents, and the config."""
    (folder / "text").mkdir(parents=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in made_up_texts())
    (folder / "text" / "docs.jsonl").write_text(rows)
    (folder / "base.gin").write_text(CONFIG.replace("FOLDER", str(folder)))
    return World(folder, load)


def begun(world: World, folder: Path) -> Desk:
    """A project in `folder`, with its limits."""
    desk = Desk(folder / "research", world.load, "a model", [])
    limits = Project(
        config=(world.gin,), overrides=(), promote=(), max_flops=1e12, max_usd=1.0, max_hours=1.0
    )
    person.begin(desk, limits)
    return desk


def drafted(desk: Desk, b1: str) -> str:
    """Id of a checked draft of one change."""
    proposal = desk.propose("a change", {"OptimConfig.b1": b1}, "to see", -0.01, -0.03, 0.01)
    return desk.draft([proposal.id], "it helps").id


def yes(text: str, wanted: str) -> bool:
    """A person who agrees to everything."""
    return True
