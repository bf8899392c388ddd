# SPDX-License-Identifier: Apache-2.0
"""A user with bad luck: one clear line that says what to do, exit code 2, nothing written or lost.

Every row of a table is a command in a folder where something is wrong.  The commands run in this
process; those that need one of their own are in test_bad_luck.py.
"""

import contextlib
import shlex
import shutil
from pathlib import Path

import pytest

from jaxlm.cli.main import main
from tests.e2e.workshop import (
    CONFIG,
    Setup,
    alter,
    cut,
    damage_checkpoints,
    furnish,
    one_document,
    only,
    refused,
    replace,
    truncated_gzip,
    truncated_zst,
    unfinished,
    write,
)

TRAIN = "train base.gin --run runs/new"


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared cache and a finished run in runs/done."""
    folder = tmp_path_factory.mktemp("workshop")
    furnish(folder)
    with contextlib.chdir(folder):
        assert main(["train", "base.gin", "--run", "runs/done"]) == 0
    return folder


@pytest.fixture
def workshop(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder: a copy of `furnished`."""
    shutil.copytree(furnished, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")


def set_(*bindings: str) -> str:
    return " ".join([TRAIN, *(f"--set {shlex.quote(binding)}" for binding in bindings)])


CONFIGS: dict[str, tuple[Setup | None, str, str]] = {
    "unknown key": (None, set_("OptimConfig.peak_lrr = 1"), "did you mean 'peak_lr'?"),
    "unknown section": (None, set_("OptmConfig.peak_lr = 1"), "did you mean 'OptimConfig'?"),
    "too long": (None, set_(f"DataConfig.seq_len = {10**26}"), f"seq_len must be between 2 and 16,777,216, got {10**26}"),
    "wrong type": (None, set_("DataConfig.seq_len = 'x'"), "must be of type int, got 'x'"),
    "out of range": (None, set_("OptimConfig.peak_lr = -1"), "must be > 0, got -1"),
    "heads": (None, set_("ModelConfig.num_heads = 3"), "a multiple of num_heads=3"),
    "RoPE": (
        None, set_("ModelConfig.head_dim = 2", "ModelConfig.rope_scaling = 'ntk'"), "head_dim must be above 2 with rope_scaling='ntk', got 2",
    ),
    "experts of a token": (None, set_("ModelConfig.num_experts = 1"), "experts_per_token must be between 1 and num_experts=1"),
    "no experts": (None, set_("ModelConfig.num_shared_experts = 2"), "must be left out, or ModelConfig.num_experts set"),
    "dense layers": (None, set_("ModelConfig.num_experts = 4", "ModelConfig.num_dense_layers = 4"), "must be below num_layers="),
    "experts and mesh": (None, set_("ModelConfig.num_experts = 6", "MeshConfig.data = 1", "MeshConfig.expert = 8"), "num_experts=6 is not divisible by MeshConfig.expert=8"),
    "expert kernel": (None, set_("ModelConfig.num_experts = 4", "ModelConfig.expert_impl = 'pallas'"), "needs a TPU"),
    "kv heads": (None, set_("ModelConfig.num_kv_heads = 3"), "a divisor of num_heads=2, got 3"),
    "batch and mesh": (None, set_("DataConfig.batch_size = 12"), "not divisible by MeshConfig.data=8"),
    "mesh and devices": (None, set_("MeshConfig.data = 3"), "needs 3 devices, found 8; set one axis to -1"),
    "mesh and width": (None, set_("MeshConfig.model = 8"), "num_heads=2 is not divisible by MeshConfig.model=8"),
    "mesh and layers": (None, set_("MeshConfig.pipeline = 2"), "num_layers=1 is not divisible by MeshConfig.pipeline=2 x pipeline_repeats=1"),
    "queue": (None, set_("MeshConfig.pipeline = 2", "MeshConfig.pipeline_micro_batches = 1"), "pipeline_micro_batches must be at least MeshConfig.pipeline=2"),
    "queue of no stages": (None, set_("MeshConfig.pipeline_micro_batches = 4"), "must be 1 or left out where there are no stages, MeshConfig.pipeline=1, got 4"),
    "turns round no stages": (None, set_("MeshConfig.pipeline_repeats = 7"), "MeshConfig.pipeline_repeats must be 1 or left out"),
    "queue and rows": (None, set_("ModelConfig.num_layers = 2", "MeshConfig.pipeline = 2", "MeshConfig.pipeline_micro_batches = 4"), "8 rows on 4 groups of devices"),
    "context and chunks": (None, set_("MeshConfig.data = 1", "MeshConfig.context = 8", "DataConfig.seq_len = 40"), "seq_len=40 is not divisible by twice MeshConfig.context=8"),
    "context and heads": (None, set_("MeshConfig.context = 4", "MeshConfig.context_attention = 'ulysses'"), "num_heads=2 is not divisible by MeshConfig.context=4"),
    "way of attention": (None, set_("MeshConfig.context_attention = 'rings'"), "ulysses"),
    "kernel": (None, set_("ModelConfig.attention_impl = 'pallas'"), "cannot run: the mesh is of cpu devices"),
    "warmup": (None, set_("OptimConfig.warmup_steps = 9"), "below TrainConfig.num_steps=4, got 9"),
    "group": (
        None, set_("OptimConfig.groups = [@GroupConfig()]") + " --set \"GroupConfig.pattern = 'x'\"",
        "must match the whole path of a parameter",
    ),
    "macro cycle": (None, set_("y = %z", "z = [%y]", "OptimConfig.peak_lr = %y"), "%y refers to itself: %y -> %z -> %y; give one of them a value"),
    "config cycle": (None, set_("RunConfig.optim = @RunConfig()"), "@RunConfig() refers to itself: @RunConfig() -> @RunConfig(); give one"),
    "open bracket": (None, set_("DataConfig.corpora = ("), "not gin syntax"),
    "no such config": (None, "train nowhere.gin", "cannot read config nowhere.gin: No such file"),
    "config is a folder": (None, "train text", "cannot read config text: Is a directory"),
    "bare word": (None, set_("OptimConfig.peak_lr = abc"), "not gin syntax: 'abc' is no value (strings need quotes)"),
    "macro, none defined": (None, set_("OptimConfig.peak_lr = %abc"), "undefined macro %abc; none are known"),
    "missing include": (write("base.gin", 'include "gone.gin"\n'), TRAIN, "gone.gin, included by base.gin: No such"),
    "include cycle": (
        lambda: (write("base.gin", 'include "b.gin"')(), write("b.gin", 'include "base.gin"')()),
        TRAIN, "base.gin includes itself, included by b.gin; remove one include",
    ),
    "config not UTF-8": (write("base.gin", b"# \xff\n"), TRAIN, "base.gin is not UTF-8 text (byte 2)"),
    "seed": (None, set_(f"TrainConfig.seed = {2**32}"), "TrainConfig.seed must be between 0 and 4294967295, got 4294967296"),
    "steps": (None, set_(f"TrainConfig.num_steps = {10**26}"), "num_steps must be between 1 and 2147483647, got 1000"),
    "tokens of a sample": (None, set_(f"TrainConfig.sample_tokens = {10**10}"), "sample_tokens must be between 1 and 1048576, got 1"),
    "weights zero": (None, set_("CorpusConfig.weight = 0"), "positive total weight"),
    "weight negative": (None, set_("CorpusConfig.weight = -1"), "must be >= 0, got -1.0"),
    "schedule's length": (
        None, set_("DataConfig.weight_schedule = ((0, (1.0, 2.0)),)"), "one weight for each of 1 corpora, got (1.0, 2.0)",
    ),
    "schedule zero": (None, set_("DataConfig.weight_schedule = ((0, (0.0,)),)"), "weights >= 0 of a positive sum"),
    "vocabulary and embedding": (
        None, set_("TokenizerConfig.vocab_size = 400"), "at most ModelConfig.vocab_size=320",
    ),
}  # fmt: skip

GIVEN = "TokenizerConfig.path = 'runs/done/tokenizer.model'"

DATA: dict[str, tuple[Setup | None, str, str]] = {
    "no file matches": (None, set_("CorpusConfig.source = 'no/*.txt'"), "no file matches 'no/*.txt': give"),
    "empty file": (write("text/a.txt", ""), TRAIN, "text/a.txt: the file is empty: put text in it or leave it out"),
    "invalid UTF-8": (write("text/a.txt", b"ab\xff"), TRAIN, "text/a.txt: invalid UTF-8 at byte 2: convert"),
    "broken parquet": (write("text/a.parquet", b"PAR1"), TRAIN, "text/a.parquet: broken parquet"),
    "truncated gzip": (truncated_gzip, TRAIN, "text/more.jsonl.gz: broken or truncated gzip"),
    "truncated zst": (truncated_zst, TRAIN, "text/more.jsonl.zst: cannot be read (Truncated"),
    "no field": (write("text/a.jsonl", '{"body": "x"}\n'), TRAIN, "text/a.jsonl:1: no field 'text' among: body; set"),
    "not JSON": (write("text/a.jsonl", "x\n"), TRAIN, "text/a.jsonl:1: not JSON"),
    "deep JSON": (
        write("text/a.jsonl", '{"text": ' + "[" * 200_000 + "\n"), TRAIN, "text/a.jsonl:1: nested too deeply: each line must be one JSON",
    ),
    "too few tokens": (
        None, set_("DataConfig.batch_size = 8000"), "but one batch takes 8000: give more text, or set a smaller",
    ),
    "no validation text": (one_document, set_("DataConfig.valid_frac = 1e-9"), "validation split has no text"),
    "no training text": (one_document, set_("DataConfig.valid_frac = 0.999999999"), "training split has no text"),
    "cache is a file": (None, set_("DataConfig.cache_dir = 'base.gin'"), "base.gin: cannot be written"),
    "tokenizer missing": (None, set_("TokenizerConfig.path = 'x.model'"), "tokenizer x.model: cannot be read (No such"),
    "tokenizer truncated": (cut("runs/done/tokenizer.model"), set_(GIVEN), "damaged, or no SentencePiece model"),
    "tokenizer garbage": (write("runs/done/tokenizer.model", b"garbage"), set_(GIVEN), "damaged, or no SentencePiece"),
    "tokenizer's vocabulary": (
        None, set_(GIVEN) + " --set TokenizerConfig.vocab_size=310", "has 320 pieces, but TokenizerConfig.vocab_size is 310",
    ),
    "vocabulary too large for the text": (
        None, set_("TokenizerConfig.vocab_size = 9000") + " --set ModelConfig.vocab_size=9000", "cannot be trained on this text",
    ),
    "cached tokenizer altered": (
        alter("data/tokenizers/*/tokenizer.model"), TRAIN, "put that one back, or delete data/tokenizers/",
    ),
    "cached tokenizer truncated": (cut("data/tokenizers/*/tokenizer.model"), TRAIN, "damaged: delete it and run again"),
}  # fmt: skip

DONE = "train base.gin --run runs/done"

RUNS: dict[str, tuple[Setup | None, str, str]] = {
    "finished": (None, DONE, "runs/done is finished (4 updates): see runs/done/report.html, or start another"),
    "another config": (
        None, DONE + " --set OptimConfig.peak_lr=0.5 --set ModelConfig.ffn_dim=8",
        "another config: model.ffn_dim 16 -> 8, optim.peak_lr 0.01 -> 0.5; choose another with --run DIR",
    ),
    "other text": (
        unfinished(write("text/a.txt", "more")), DONE, "runs/done was trained on other data",
    ),
    "a file": (None, "train base.gin --run base.gin", "base.gin is a file; choose another with --run DIR"),
    "below a file": (None, "train base.gin --run base.gin/x", "base.gin is a file; choose another"),
    "no UTF-8": (None, "train base.gin --run runs/by\udcff", "run directory 'runs/by\\udcff': its path is not UTF-8"),
    "not empty": (None, "train base.gin --run text", "text is not empty and holds no run (no config.json)"),
    "config.json damaged": (write("runs/done/config.json", "{"), DONE, "config.json is damaged"),
    "config.json a list": (write("runs/done/config.json", "[]"), DONE, "damaged (no JSON object); put a copy of it back"),
    "config.json of another version": (
        replace("runs/done/config.json", '"norm_eps"', '"norm_epz"'), DONE, "did you mean 'norm_eps'?",
    ),
    "summary.json damaged": (write("runs/done/summary.json", b"\xff"), DONE, "summary.json is damaged"),
    "summary.json a list": (write("runs/done/summary.json", "[1]"), DONE, "delete it, then run again"),
    "telemetry damaged": (
        unfinished(replace("runs/done/telemetry.jsonl", '{"kind": "train", "step": 2', "#")), DONE,
        "telemetry.jsonl:2 is damaged: b'#",
    ),
    "telemetry of another kind": (
        unfinished(replace("runs/done/telemetry.jsonl", '"step": 2', '"stop": 2')), DONE, "delete this line, then run again",
    ),
}  # fmt: skip

GENERATE = "generate runs/done la"

USES: dict[str, tuple[Setup | None, str, str]] = {
    "generate: no folder": (None, "generate runs/x la", "runs/x does not exist; pass a directory that `jaxlm train` made"),
    "eval: no folder": (None, "eval runs/x", "runs/x does not exist"),
    "generate: no run": (None, "generate text la", "text is no run directory: it has no config.json"),
    "eval: a file": (None, "eval base.gin", "base.gin is no run directory"),
    "no checkpoint": (lambda: shutil.rmtree("runs/done/checkpoints"), GENERATE, "has no checkpoint yet"),
    "all damaged": (damage_checkpoints, GENERATE, "all checkpoints in runs/done/checkpoints are damaged"),
    "all damaged, eval": (damage_checkpoints, "eval runs/done", "are damaged"),
    "eval: other text": (
        lambda: shutil.copy("text/docs.jsonl", "text/more.jsonl"), "eval runs/done", "runs/done was trained on other data",
    ),
    "damaged config": (write("runs/done/config.json", "{"), GENERATE, "config.json is damaged"),
    "no tokenizer": (lambda: Path("runs/done/tokenizer.model").unlink(), GENERATE, "tokenizer.model: cannot be read"),
    "tokenizer altered": (
        alter("runs/done/tokenizer.model"), GENERATE, "): put that one back\n",  # never: delete the run
    ),
    "tokens": (None, GENERATE + " --tokens 0", "--tokens must be between 1 and 1048576, got 0"),
    "many tokens": (None, GENERATE + " --tokens 10000000000", "--tokens must be between 1 and 1048576, got 10000000000"),
    "top-p": (None, GENERATE + " --top-p 2", "--top-p must be above 0, at most 1, got 2.0"),
    "top-k": (None, GENERATE + " --top-k -1", "--top-k must be between 0 and 2147483647, got -1"),
    "large top-k": (None, GENERATE + " --top-k 9999999999", "--top-k must be between 0 and 2147483647, got 9999999999"),
    "temperature": (None, GENERATE + " --temperature nan", "--temperature must be >= 0, got nan"),
    "large seed": (None, GENERATE + " --seed 4294967296", "--seed must be between 0 and 4294967295, got 4294967296"),
    "negative seed": (None, GENERATE + " --seed -1", "--seed must be between 0 and 4294967295, got -1"),
    "seed": (None, GENERATE + " --seed x", "argument --seed: invalid int value: 'x'; see `jaxlm generate --help`"),
}  # fmt: skip

FLAGS: dict[str, tuple[Setup | None, str, str]] = {
    "unknown command": (None, "trian base.gin", "unknown command 'trian'; did you mean 'train'?"),
    "no command": (None, "", "required: COMMAND; see `jaxlm --help`"),
    "no config": (None, "train", "required: config; see `jaxlm train --help`"),
    "unknown flag": (None, TRAIN + " --dry-rum", "jaxlm train has no argument '--dry-rum'; did you mean '--dry-run'?"),
    "unknown verb": (None, "data prepar base.gin", "invalid choice: 'prepar'"),
    "devices": (None, TRAIN + " --cpu-devices 0", "--cpu-devices must be >= 1, got 0"),
    "coordinator alone": (None, TRAIN + " --coordinator a:1", "go together; give all three"),
    "process alone": (None, TRAIN + " --process-id 0", "go together; give all three"),
    "no port": (
        None, TRAIN + " --coordinator a --num-processes 2 --process-id 0", "--coordinator must be HOST:PORT",
    ),
    "no processes": (None, TRAIN + " --coordinator a:1 --num-processes 0 --process-id 0", "must be >= 1, got 0"),
    "process id": (
        None, TRAIN + " --coordinator a:1 --num-processes 2 --process-id 2", "--process-id must be in 0..1, got 2",
    ),
}  # fmt: skip

PLAN = "plan base.gin --topology v5p:2x2x1"
FEW = "bench policies --policies greedy --count 1 --budgets 5"

# What these commands cannot do they say before they work, not after it.
TOOLS: dict[str, tuple[Setup | None, str, str]] = {
    "plan: price": (None, PLAN + " --analytic --price -1", "--price must be >= 0, got -1"),
    "plan: endless price": (
        None, PLAN + " --analytic --price inf", "--price must be finite, got inf",
    ),
    "plan: no price": (None, PLAN + " --analytic --price nan", "--price must be >= 0, got nan"),
    "plan: no folder": (None, PLAN + " --analytic --json no/x.json", "no/x.json cannot be written: there is no folder no"),
    "plan: no folder for a page": (None, PLAN + " --analytic --html no/x.html", "there is no folder no; make it first"),
    "plan: a folder": (None, PLAN + " --analytic --json text", "text cannot be written: it is a folder; name a file"),
    "profile, dry": (
        None, set_("TrainConfig.profile_steps = (3, 5)") + " --dry-run", "must be within TrainConfig.num_steps=4, got (3, 5)",
    ),
    "train: a damaged executable": (
        write("x.bin", b'{"format": "jaxlm step 2"}\nx'), "train base.gin --run new --executable x.bin", "x.bin is damaged",
    ),
    "train: a damaged executable, dry": (
        write("x.bin", b'{"format": "jaxlm step 2"}\nx'), "train base.gin --dry-run --executable x.bin", "x.bin is damaged",
    ),
    "plan: nothing to save": (None, PLAN + " --analytic --save x.bin", "--save does not go with --analytic"),
    "plan: search compiles": (None, PLAN + " --analytic --search 2", "--analytic does not go with --search"),
    "plan: compare has no page": (
        None, "plan base.gin base.gin --compare --analytic --topology v5p:2x2x1 --html x.html", "--html does not go with --compare",
    ),
    "train: no kernel, dry": (
        None, set_("ModelConfig.loss_impl = 'pallas'") + " --dry-run", "loss impl 'pallas' cannot run: the mesh is of cpu devices",
    ),
    "bench: no step": (None, "bench step base.gin --steps 1", "--steps must be >= 2, got 1"),
    "bench: no batch": (None, "bench loader base.gin --steps 0", "--steps must be >= 1, got 0"),
    "bench: no loop": (None, "bench loop base.gin --steps -1", "--steps must be >= 4, got -1"),
    "bench: no block": (None, "bench kernels --tune --most 0", "--most must be >= 1, got 0"),
    "bench: another's option": (None, "bench step base.gin --json x.json", "--json is of bench kernels and diagnose, not of step"),
    "bench: no such config, behind an option": (None, "bench step --steps 2 no.gin", "cannot read config no.gin"),
    "bench: no use of a config": (None, FEW + " base.gin", "bench policies takes no config, got base.gin"),
    "bench: no folder": (None, FEW + " --html no/x.html", "there is no folder no"),
    "bench: no bank": (None, "bench policies --bank no.csv", "no.csv: cannot be read (No such file or directory)"),
    "bench: endless budget": (None, FEW[:-1] + "inf", "--budgets must be numbers >= 1, at most 10000, got 'inf'"),
    "bench: no number": (None, FEW[:-1] + "nan", "at most 10000, got 'nan'"),
    "bench: large budget": (None, FEW[:-1] + "1e9", "at most 10000, got '1e9'"),
    "bench: negative budget": (None, FEW[:-1] + "-5", "--budgets must be numbers >= 1"),
    "bench: no world": (None, "bench policies --count 0", "--count must be numbers >= 1, at most 100000, got '0'"),
    "bench: no comparison": (None, "bench calibration --count 0", "--count must be numbers >= 1"),
    "bench: many comparisons": (None, "bench calibration --count 1000000000", "at most 100000"),
    "bench: no bank of comparisons": (None, "bench calibration --bank no.csv", "no.csv: cannot be read"),
    "inspect: no row": (None, "data inspect base.gin --rows 0", "--rows must be >= 1, got 0"),
    "inspect: no batch": (None, "data inspect base.gin --step -1", "--step must be between 0 and 2147483646, got -1"),
    "inspect: no such batch": (
        None, "data inspect base.gin --step 99999999999999", "--step must be between 0 and 2147483646, got 99999999999999",
    ),
    "profile": (None, set_("TrainConfig.profile_steps = (3, 5)"), "must be within TrainConfig.num_steps=4, got (3, 5)"),
    "ablate: other validation text": (
        None, "ablate base.gin --vary DataConfig.valid_frac=[0.1]", "arm 'valid_frac=0.1' has another DataConfig.valid_frac",
    ),
    "ablate: other corpus": (
        None, "ablate base.gin --idea \"mine: CorpusConfig.source='base.gin'\"", "arm 'mine' has another DataConfig.corpora",
    ),
    "ablate: a file": (
        None, "ablate base.gin --vary OptimConfig.b1=[0.8] --project base.gin", "base.gin/ledger.jsonl: Not a directory; a file stands where",
    ),
    "init: below a file": (
        None, "research init base.gin --max-flops 1e12 --project base.gin/x", "a file stands where a folder should be: choose another folder",
    ),
    "log: a file": (None, "research log --project base.gin", "a file stands where a folder should be"),
    "verify: a file": (None, "research verify --project base.gin", "a file stands where a folder should be"),
    "ablate: a seed": (
        None, "ablate base.gin --vary TrainConfig.seed=[1]", "arms 'baseline' and 'seed=1' are the same config",
    ),
    "ablate: options of no worker": (
        None, "ablate base.gin --vary ModelConfig.ffn_dim=[8] --worker-option num_gpus=1", "--worker-option is for --on ray",
    ),
    "init: promote": (
        None, "research init base.gin --max-flops 1e12 --promote ModelConfig.num_layrs=4", "did you mean 'num_layers'?",
    ),
    "init: patch path": (
        None, "research init base.gin --max-flops 1e15 --patch-path ../x.py", "--patch-path '../x.py' is no part of the code",
    ),
    "train: executable": (None, TRAIN + " --dry-run --executable no.bin", "--executable no.bin cannot be read"),
    "ablate: no budget": (
        None, "ablate base.gin --vary OptimConfig.b1=[0.8] --policy --dry-run", "--policy needs a --budget",
    ),
    "init: limits": (None, "research init base.gin --max-flops inf", "max_flops must be a number >= 0, got inf"),
    "init: prices": (
        None, "research init base.gin --max-flops 1e12 --model other", "--model other needs --usd-per-mtok IN,OUT",
    ),
    "init: no prices": (
        None, "research init base.gin --max-flops 1e12 --usd-per-mtok 1,x", "must be two numbers such as 5,25, got '1,x'",
    ),
    "mcp: port": (None, "mcp --http 99999", "--http must be in 0..65535, got 99999"),
    "halt: no project": (None, "research halt", "research is no project yet"),
    "loop: widths": (None, "research loop base.gin --widths 1,2", "4 or more rising widths"),
    "loop: seeds": (None, "research loop base.gin --trial-seeds 1", "2 or more seeds, got 1 and 3"),
    "loop: hours": (None, "research loop base.gin --hours 0", "--hours must be above 0, got 0"),
    "loop: workers": (None, "research loop base.gin --workers 0", "--workers must be >= 1, got 0"),
    "propose: none": (None, "research propose --count 0", "--count must be >= 1, got 0"),
    "loop: effect": (None, "research loop base.gin --smallest-effect nan", "--smallest-effect must be >= 0, got nan"),
}  # fmt: skip

TABLES = {"config": CONFIGS, "data": DATA, "run": RUNS, "use": USES, "flag": FLAGS, "tool": TOOLS}


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("setup", "command", "expected"),
    [
        pytest.param(*row, id=f"{table}: {name}")
        for table, rows in TABLES.items()
        for name, row in rows.items()
    ],
)
def test_is_one_clear_line_and_nothing_is_written_or_lost(
    capfd: pytest.CaptureFixture[str], setup: Setup | None, command: str, expected: str
) -> None:
    if setup:
        setup()
    assert expected in refused(shlex.split(command), capfd)
    assert not Path("runs/new").exists()
    assert not Path("research").exists()


def test_bad_text_leaves_no_trace_of_a_cache_that_was_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    write("text/z.txt", b"\xff")()
    assert "invalid UTF-8 at byte 0" in refused(["data", "prepare", "base.gin"], capfd)
    assert [p.name for p in Path("data").iterdir()] == [".lock"]


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("prompt", ["", "a\udcff\udcc3b", "é\x00\n", "-1, hello", "-1,hello"])
def test_any_prompt_is_continued(capfd: pytest.CaptureFixture[str], prompt: str) -> None:
    assert main(["generate", "runs/done", prompt, "--tokens", "2"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(prompt.encode(errors="replace").decode())
    assert err == ""


@pytest.mark.usefixtures("workshop")
def test_a_share_that_float32_cannot_hold_leaves_the_likeliest_token(
    capfd: pytest.CaptureFixture[str],
) -> None:
    told = []
    for option in (["--temperature", "0"], ["--top-p", "1e-50"]):
        assert main(["generate", "runs/done", "la", "--tokens", "8", *option]) == 0
        told.append(capfd.readouterr().out)
    assert told[0] == told[1]


@pytest.mark.usefixtures("workshop")
def test_any_text_is_tokenised(capfd: pytest.CaptureFixture[str]) -> None:
    """Also bytes that are no UTF-8, which Python gives a command as half surrogates."""
    assert main(["data", "tokenize", "base.gin", "--text", "a\udcff"]) == 0
    out, err = capfd.readouterr()
    assert "b'\\xff'" in out and "2 bytes, " in out
    assert err == ""


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("text", [CONFIG, 'include "base.gin"\n'])
def test_damage_that_can_be_mended_alone_is(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """A damaged memory of hashes is a cache's own affair, and a torn last row a killed run's."""
    unfinished()()
    only("data/sources/*.json").write_text("{")
    with open("runs/done/telemetry.jsonl", "a") as file:
        file.write('{"kind": "tr')
    write("top.gin", text)()
    assert main(["train", "top.gin", "--run", "runs/done"]) == 0, capfd.readouterr()
