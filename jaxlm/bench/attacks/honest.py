# SPDX-License-Identifier: Apache-2.0
"""Honest patches and honest guests, which all must pass: walls that stop everything prove nothing.

Each patch is a change of the code that a researcher may want to try, with a test of it.  All of them
pass the desk (proposal, draft, check); some are also tried, trained and judged behind the walls, which
takes most of a minute each, because a patched model is compiled four times.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from jaxlm.bench.attacks import guests
from jaxlm.bench.attacks.attack import Attack, GotThroughError, behind_walls
from jaxlm.bench.attacks.diffs import edited
from jaxlm.bench.attacks.world import World, begun
from jaxlm.core.errors import ConfigError, RunError
from jaxlm.research.fingerprint import PACKAGE
from jaxlm.research.patch.host import train_patched
from jaxlm.research.patch.judge import judge_patched
from jaxlm.research.patch.trial import try_patch
from jaxlm.research.plan import job_run

NN, OPTIM = "jaxlm/nn", "jaxlm/optim"
TESTS = {  # a patch's own test, by the file that it changes
    f"{NN}/norm.py": """
    from jaxlm.nn.norm import RMSNorm
    norm, x = RMSNorm(eps=1e-6), jnp.arange(1.0, 9.0)
    assert jnp.isfinite(norm.apply(norm.init(jax.random.key(0), x), x)).all()
""",
    f"{NN}/mlp.py": """
    from jaxlm.nn.mlp import MLP
    mlp, x = MLP(8, "gelu", 1), jnp.ones((1, 2, 4))
    assert mlp.apply(mlp.init(jax.random.key(0), x), x).shape == x.shape
""",
    f"{NN}/init.py": """
    from jaxlm.nn import init
    drawn = init.reads(4)(jax.random.key(0), (4, 64))
    assert jnp.isfinite(drawn).all() and jnp.abs(drawn).max() < 9
""",
    f"{NN}/rope.py": """
    from jaxlm.nn.rope import rope_frequencies
    frequencies, gain = rope_frequencies(8, 10000.0)
    assert len(frequencies) == 4 and gain > 0
""",
    f"{NN}/embed.py": """
    from jaxlm.nn.embed import Embed
    embed, tokens = Embed(5, 4, False, jnp.float32), jnp.zeros((1, 2), jnp.int32)
    assert embed.apply(embed.init(jax.random.key(0), tokens), tokens).shape == (1, 2, 4)
""",
    f"{NN}/attention.py": """
    from jaxlm.model.config import ModelConfig
    from jaxlm.model.transformer import Model
    model = Model(ModelConfig(vocab_size=5, num_layers=1, embed_dim=4, num_heads=1, ffn_dim=8))
    params, tokens = model.init(jax.random.key(0)), jnp.array([[1, 2, 3], [1, 2, 4]])
    one, other = model.apply(params, tokens)
    assert jnp.allclose(one[:2], other[:2]) and not jnp.allclose(one[2], other[2])
""",
    f"{OPTIM}/schedule.py": """
    from jaxlm.optim.schedule import learning_rate_scale
    h = {"warmup_steps": 2, "num_steps": 6, "final_lr_frac": 0.0, "decay_frac": 0.5}
    shares = [learning_rate_scale("linear", step, h) for step in range(6)]
    assert all(0 <= share <= 1 for share in shares)
""",
    f"{OPTIM}/build.py": """
    from jaxlm.optim.build import make_optimizer
    from jaxlm.optim.config import OptimConfig
    assert make_optimizer(OptimConfig(peak_lr=1e-3), {"scale": ("norm",)})
""",
    "jaxlm/loss.py": """
    from jaxlm.loss import cross_entropy
    sums = cross_entropy(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))
    assert abs(float(sums.nats) - 1.3863) < 1e-3
""",
    "jaxlm/model/transformer.py": """
    from jaxlm.model.config import ModelConfig
    from jaxlm.model.transformer import Model
    model = Model(ModelConfig(vocab_size=5, num_layers=1, embed_dim=4, num_heads=1, ffn_dim=8))
    logits = model.logits(model.init(jax.random.key(0)), 1e9 * jnp.ones((1, 2, 4)))
    assert logits.shape == (1, 2, 5) and jnp.abs(logits).max() <= 30
""",
}


@dataclasses.dataclass(frozen=True)
class Honest:
    """One change: `old` stands in the file as it is."""

    title: str
    path: str
    old: str
    new: str

    def diff(self) -> str:
        text = (PACKAGE.parent / self.path).read_text(encoding="utf-8")
        if self.old not in text:
            raise ValueError(f"{self.title}: {self.path} does not hold {self.old!r} any more")
        name = "".join(c if c.isalnum() else "_" for c in self.title)
        test = f"import jax\nimport jax.numpy as jnp\n\n\ndef test_{name}():{TESTS[self.path]}"
        code = edited(self.path, text, text.replace(self.old, self.new))
        return code + edited(f"tests/patches/test_{name}.py", "", test)


PATCHES = (
    Honest("eps doubled", f"{NN}/norm.py", "+ self.eps)", "+ 2 * self.eps)"),
    Honest("eps outside the root", f"{NN}/norm.py",
           "jax.lax.rsqrt(jnp.mean(x32_D * x32_D, axis=-1, keepdims=True) + self.eps)",
           "1 / (jnp.sqrt(jnp.mean(x32_D * x32_D, axis=-1, keepdims=True)) + self.eps)"),
    Honest("mean of absolute values", f"{NN}/norm.py",
           "jax.lax.rsqrt(jnp.mean(x32_D * x32_D, axis=-1, keepdims=True) + self.eps)",
           "1 / (jnp.mean(jnp.abs(x32_D), axis=-1, keepdims=True) + self.eps)"),
    Honest("half of the norm's scale", f"{NN}/norm.py", "x32_D * rstd *", "0.5 * x32_D * rstd *"),
    Honest("swish for gelu", f"{NN}/mlp.py", '"gelu": gelu,', '"gelu": nn.silu,'),
    Honest("exact gelu", f"{NN}/mlp.py", '"gelu": gelu,',
           '"gelu": lambda x: nn.gelu(x, approximate=False),'),
    Honest("mish", f"{NN}/mlp.py", '"gelu": gelu,',
           '"gelu": lambda x: x * jnp.tanh(nn.softplus(x)),'),
    Honest("leaky square", f"{NN}/mlp.py", '"gelu": gelu,',
           '"gelu": lambda x: jnp.square(nn.leaky_relu(x, 0.1)),'),
    Honest("weaker residual of the MLP", f"{NN}/mlp.py",
           "return linear(hidden_BTF, w_down_FD)", "return 0.8 * linear(hidden_BTF, w_down_FD)"),
    Honest("smaller embedding", f"{NN}/init.py", "0.02 if is_tied else 1.0",
           "0.02 if is_tied else 0.5"),
    Honest("smaller output matrix", f"{NN}/init.py",
           "return nn.initializers.normal(0.02)", "return nn.initializers.normal(0.01)"),
    Honest("truncated normal", f"{NN}/init.py",
           "return nn.initializers.normal(1.0 / math.sqrt(fan_in))",
           "return nn.initializers.truncated_normal(1.0 / math.sqrt(fan_in))"),
    Honest("residuals start at nothing", f"{NN}/init.py",
           "return nn.initializers.normal(1.0 / math.sqrt(fan_in * 2 * num_layers))",
           "return nn.initializers.zeros_init()"),
    Honest("partial rotation", f"{NN}/rope.py", "        return freq_F, 1.0",
           "        half_F = np.arange(len(freq_F)) < len(freq_F) // 2\n"
           "        return freq_F * half_F, 1.0"),
    Honest("slower rotation", f"{NN}/rope.py", "        return freq_F, 1.0",
           "        return 0.5 * freq_F, 1.0"),
    Honest("embedding over its depth", f"{NN}/embed.py",
           "return _rows(self.table_VD, tokens_BT, self.dtype)",
           "return 1.5 * _rows(self.table_VD, tokens_BT, self.dtype)"),
    Honest("softer queries", f"{NN}/attention.py",
           "q_BTNH, k_BTKH = apply_rope(q_BTNH, where.rope), apply_rope(k_BTKH, where.rope)",
           "q_BTNH, k_BTKH = apply_rope(0.8 * q_BTNH, where.rope), apply_rope(k_BTKH, where.rope)"),
    Honest("weaker residual of attention", f"{NN}/attention.py",
           "return linear(out_BTNH, wo_NHD, num_inputs=2), cache",
           "return 0.8 * linear(out_BTNH, wo_NHD, num_inputs=2), cache"),
    Honest("decay by the square", f"{OPTIM}/schedule.py", "else 1 - progress",
           "else (1 - progress) ** 2"),
    Honest("decay by the root", f"{OPTIM}/schedule.py", "else 1 - progress",
           "else jnp.sqrt(1 - progress)"),
    Honest("smooth warmup", f"{OPTIM}/schedule.py",
           "warm = jnp.minimum(update / jnp.maximum(warmup, 1), 1)",
           "warm = jnp.minimum(update / jnp.maximum(warmup, 1), 1) ** 2"),
    Honest("Nesterov's momentum", f"{OPTIM}/build.py",
           'return optax.scale_by_adam(h["b1"], h["b2"], h["eps"])\n        case "muon"',
           'return optax.scale_by_adam(h["b1"], h["b2"], h["eps"], nesterov=True)\n        case "muon"'),
    Honest("vectors decay too", f"{OPTIM}/build.py",
           'decay = 0.0 if label == "vector" else h["weight_decay"]',
           'decay = h["weight_decay"]'),
    Honest("clip without a jump", f"{OPTIM}/build.py",
           "jnp.minimum(1, max_norm / optax.tree.norm(grads))",
           "max_norm / (max_norm + optax.tree.norm(grads))"),
    Honest("a z-loss for all", "jaxlm/loss.py", "loss=nats + z_loss * z_squares,",
           "loss=nats + (z_loss + 1e-4) * z_squares,"),
    Honest("soft cap of logits", "jaxlm/model/transformer.py",
           "return logits_BTV if cap is None else cap * jnp.tanh(logits_BTV / cap)",
           "cap = cap or 30.0\n        return cap * jnp.tanh(logits_BTV / cap)"),
)  # fmt: skip
FIRST = (4, 21)  # which are trained first: of the model and of the optimizer

TRAINS = {  # guests that do what honest code may: before an answer, and in the end
    "trains quietly": ("", "leave()"),
    "prints to stderr": ("sys.stderr.write('update %d\\n' % updates)", "leave()"),
    "writes files of its own": ("open(f'note{updates}', 'w').write('x')", "leave()"),
    "uses threads": ("import threading; t = threading.Thread(target=str); t.start(); t.join()", "leave()"),
    "starts slowly": ("updates == 1 and time.sleep(1)", "leave()"),
    "diverges": ("loss = math.nan if updates == 2 else 1.0", "leave()"),
}  # fmt: skip
PREDICTS = {  # what it does before, and how sure it is of the next token
    "predicts": ("", "0.5"),
    "rounds as floats do": ("", "0.5 + 1e-5 * column[i - 1]"),
    "is surer of some tokens": ("", "0.3 + 0.05 * token"),
}


def honest(world: World, trained: int) -> Iterator[Attack]:
    """trained: how many of the patches are also trained and judged behind the walls."""
    for patch in PATCHES:
        yield Attack(target="honest patch", name=patch.title, run=partial(offer, world, patch))
    for name in TRAINS:
        yield behind_walls("honest guest", name, partial(train_fairly, name))
    for name in PREDICTS:
        yield behind_walls("honest guest", name, partial(predict_fairly, name))
    order = [*FIRST, *(i for i in range(len(PATCHES)) if i not in FIRST)]
    for i in order[:trained]:
        run = partial(train_and_judge, world, PATCHES[i])
        yield behind_walls("honest, trained", PATCHES[i].title, run)


def offer(world: World, patch: Honest, folder: Path) -> str:
    """At the desk, to a draft that waits for a person."""
    desk = begun(world, folder)
    try:
        proposal = desk.patch(patch.title, patch.diff(), "to see", -0.01, -0.03, 0.01)
        found = desk.draft([proposal.id], "it helps")
    except (ConfigError, RunError) as e:
        raise GotThroughError(f"refused: {e}") from e
    if found.state != "checked":
        raise GotThroughError(f"refused: {'; '.join(found.problems)}")
    return "proposed, drafted, checked"


def train_fairly(name: str, folder: Path) -> str:
    answer, end = TRAINS[name]
    try:
        found = guests.train(folder, answer, end)
    except RunError as e:
        raise GotThroughError(f"refused: {e}") from e
    return f"{len(found.losses)} updates, {len(found.params)} bytes of parameters"


def predict_fairly(name: str, folder: Path) -> str:
    before, sure = PREDICTS[name]
    answer = f"say(*(x for i, token in enumerate(column) for x in likely(token + 1, {sure})))"
    try:
        scored = guests.score(folder, guests.predicts(answer, before))
    except RunError as e:
        raise GotThroughError(f"refused: {e}") from e
    if name == "predicts":
        guests.check_fair(scored)
    return f"{len(scored)} pieces scored, asked twice"


def train_and_judge(world: World, patch: Honest, folder: Path) -> str:
    """Its test and some updates, as before a person's consent; a whole run; the judge, twice."""
    config, diff = world.load([world.gin], ()), patch.diff()
    try:
        tried = try_patch(config, diff, is_weaker_allowed=False)
        if tried.problems:
            raise GotThroughError(f"refused: {'; '.join(tried.problems)}")
        run = job_run(config, 0, folder / "research", diff=diff)
        train_patched(run, lambda step: None)
        found = judge_patched(run)
    except RunError as e:
        raise GotThroughError(f"refused: {e}") from e
    return f"{tried.claimed_tests}; {found['step']} updates; {found['eval/bpb']:.4f} bits per byte"
