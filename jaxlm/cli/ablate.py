# SPDX-License-Identifier: Apache-2.0
"""`jaxlm ablate CONFIG --vary FIELD=[A,B]`: does a change help, by how much, and how sure is that?"""

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.cli.common import add_config_arguments
from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.cli.arms import Base
    from jaxlm.research.campaign import Question, Stage
    from jaxlm.research.plan import Rules
    from jaxlm.research.runner import Means

DEFAULT_POLICY = "adaptive"
DEFAULT_SEEDS = "4"
MOST_SEEDS = 10_000  # more is a slip of the hand, and takes minutes to write down


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    group = parser.add_argument_group("arms")
    group.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=[A,B]",
        help="values to try against the config as it is, e.g. OptimConfig.peak_lr=[1e-3,2e-3]; "
        "given again, all combinations",
    )  # fmt: skip
    group.add_argument(
        "--idea", action="append", default=[], metavar="'NAME: F=V; F=V'",
        help="an arm that sets several fields; repeatable",
    )  # fmt: skip
    _add_question(parser.add_argument_group("question"))
    _add_protocol(parser.add_argument_group("protocol"))
    group = parser.add_argument_group("work")
    group.add_argument(
        "--project",
        type=Path,
        default=Path("research"),
        help="ledger and runs (default %(default)s)",
    )
    group.add_argument(
        "--workers", type=int, default=1, help="processes side by side (default %(default)s)"
    )
    group.add_argument(
        "--on", default="local", metavar="local|ray|slurm", help="where (default %(default)s)"
    )
    group.add_argument(
        "--worker-option", action="append", default=[], metavar="KEY=VALUE",
        help="of each Ray task (num_gpus=1) or SLURM job (slurm_partition=gpu); repeatable",
    )  # fmt: skip
    group.add_argument(
        "--how", choices=("auto", "in turn", "together"), default="auto",
        help="runs of one shape: one after the other, or vmapped into one program "
        "(default: in turn on a CPU)",
    )  # fmt: skip
    group.add_argument("--dry-run", action="store_true", help="print the protocol, train nothing")


def _add_question(group: Any) -> None:
    group.add_argument("--metric", default="eval/bpb", help="(default %(default)s)")
    group.add_argument(
        "--smallest-effect", type=float, default=0.0, metavar="X",
        help="in units of the metric: a gain below it is not worth keeping (default %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--no-worse-than", type=float, metavar="X",
        help="arms are simplifications: keep what costs less than X",
    )  # fmt: skip
    group.add_argument("--hypothesis", default="", help="what you expect, in words; kept")
    group.add_argument(
        "--predict",
        metavar="EFFECT,LOW,HIGH",
        help="what you expect of the best arm, in numbers; kept and scored",
    )


def _add_protocol(group: Any) -> None:
    group.add_argument(
        "--seeds", metavar="N|auto",
        help=f"of each arm; auto: as many as find --smallest-effect (default {DEFAULT_SEEDS})",
    )  # fmt: skip
    group.add_argument(
        "--max-seeds", type=int, metavar="M",
        help="add seeds to arms that are not settled, up to M; intervals then hold at every look",
    )  # fmt: skip
    group.add_argument(
        "--budget", metavar="N(flops|tokens|seconds|runs)", help="of all runs, e.g. 2e15flops, 600s"
    )
    group.add_argument(
        "--promote", action="append", default=[], metavar="FILE.gin|FIELD=VALUE",
        help="a larger scale: what is kept is adopted only if it holds there too; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--confirm", type=int, default=0, metavar="N",
        help="measure the gain of what is kept on N fresh seeds; nothing else is claimed",
    )  # fmt: skip
    group.add_argument(
        "--policy", nargs="?", const=DEFAULT_POLICY, metavar="NAME",
        help="choose among the arms' ideas within --budget instead of running all of them: "
        f"{DEFAULT_POLICY} (if no name is given), early-stop, asha, halving, replicate-all, greedy, ...",
    )  # fmt: skip
    group.add_argument(
        "--any-horizon", action="store_true",
        help="go on where the pilot says that the loss still moves too fast at this length",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from jaxlm.research.ablation_page import write_ablation
    from jaxlm.research.ablation_table import table
    from jaxlm.research.campaign import UnfinishedError, run_campaign
    from jaxlm.research.launch import Workers
    from jaxlm.research.runner import Means
    from jaxlm.telemetry.display import make_display

    base, rules, workers = _base(args), _rules(args), Workers(args.workers, args.on, _options(args))
    question = _question(args, base, rules)
    unfinished = None
    with make_display() as display:
        means = Means(
            project=args.project, progress=display.progress, workers=workers, how=args.how
        )
        if args.dry_run:
            print(_dry_run(args.policy, question, means))
            return 0
        try:
            stages = (
                [_search(args, question, base, means)]
                if args.policy
                else run_campaign(question, means)
            )
        except UnfinishedError as e:
            unfinished, stages = e, e.stages
    page = write_ablation(stages, args.project)
    print("\n".join(table(stages)))
    print(f"report: {page}")
    if unfinished:
        raise unfinished
    return 0


def _dry_run(policy: str | None, question: "Question", means: "Means") -> str:
    from jaxlm.research.campaign import check_campaign
    from jaxlm.research.plan import Seeds, dump
    from jaxlm.research.search import draft

    if policy:
        return dump(draft(question, policy, means))
    return dump(check_campaign(question, question.seeds or Seeds(count=2), means))


def _search(
    args: argparse.Namespace, question: "Question", base: "Base", means: "Means"
) -> "Stage":
    from jaxlm.cli.arms import ideas_of, merged
    from jaxlm.config import RunConfig
    from jaxlm.research.search import search_campaign

    ideas = ideas_of(args.vary, args.idea)
    scales = [base, *([base.larger(args.promote)] if args.promote else [])]

    @functools.cache  # a policy asks for the same arms again and again
    def config_of(arm: frozenset[str], scale: int) -> RunConfig | None:
        changes = merged(ideas[name] for name in sorted(arm))
        try:
            return None if changes is None else scales[scale].config(changes)
        except ConfigError:  # each works alone, not together
            return None

    return search_campaign(question, args.policy, config_of, means)


def _question(args: argparse.Namespace, base: "Base", rules: "Rules") -> "Question":
    from jaxlm.cli.arms import arms_of, check_combine, ideas_of, settings
    from jaxlm.research.campaign import Question
    from jaxlm.research.plan import check_distinct, check_metric, check_same_text
    from jaxlm.research.policies.catalogue import COMBINE, policy
    from jaxlm.research.search import budget_of

    if not args.vary and not args.idea:
        raise ConfigError("nothing to try; give --vary FIELD=[A,B] or --idea 'NAME: FIELD=VALUE'")
    seeds = _seeds(args)
    arms = (ideas_of if args.policy else arms_of)(args.vary, args.idea)
    if args.policy is not None:
        policy(args.policy)
        budget_of(rules)
        _refuse_with_policy(args)
        if args.policy in COMBINE:
            check_combine(arms)
    found = settings(base, arms, args.idea)
    check_metric(rules.metric)
    larger = settings(base.larger(args.promote), arms, args.idea) if args.promote else []
    for scale in filter(None, (found, larger)):
        check_distinct(scale)
        check_same_text(scale)
    return Question(settings=found, larger=larger, seeds=seeds, rules=rules)


def _refuse_with_policy(args: argparse.Namespace) -> None:
    """A policy takes its own seeds, and claims by its own fresh ones."""
    given = {
        "--seeds": args.seeds, "--max-seeds": args.max_seeds, "--confirm": args.confirm or None,
        "--no-worse-than": args.no_worse_than,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--policy {args.policy} takes no {option} (got {value}): it chooses arms and seeds "
                f"itself within --budget, and confirms what it keeps; leave out {option}"
            )


def _base(args: argparse.Namespace) -> "Base":
    from jaxlm.cli.arms import Base

    return Base(tuple(args.config), tuple(args.overrides))


def _seeds(args: argparse.Namespace) -> Any:
    from jaxlm.research.plan import Seeds

    told = DEFAULT_SEEDS if args.seeds is None else args.seeds
    if told == "auto":
        if not (args.smallest_effect or args.no_worse_than):
            raise ConfigError(
                "--seeds auto needs --smallest-effect X: the effect that it is to find"
            )
        if args.max_seeds is not None:
            raise ConfigError("--seeds auto and --max-seeds exclude each other; give one of them")
        return None
    if told.isdecimal() and len(told) > 18:  # Python reads no number of thousands of digits
        raise ConfigError(
            f"--seeds must be at most {MOST_SEEDS}, got a number of {len(told)} digits"
        )
    count = int(told) if told.isdecimal() else 0
    if count < 1:
        raise ConfigError(f"--seeds must be a number >= 2 or auto, got {told!r}")
    _check_few("--seeds", count)
    if count == 1:
        raise ConfigError(
            "--seeds 1 can conclude nothing: one seed tells neither the noise nor the sign of an "
            "effect; take at least 2, or --seeds auto"
        )
    if args.max_seeds is not None and args.max_seeds <= count:
        raise ConfigError(f"--max-seeds must be above --seeds {count}, got {args.max_seeds}")
    _check_few("--max-seeds", args.max_seeds or 0)
    return Seeds(count=count, most=args.max_seeds)


def _check_few(option: str, count: int) -> None:
    if count > MOST_SEEDS:
        raise ConfigError(f"{option} must be at most {MOST_SEEDS}, got {count}")


def _rules(args: argparse.Namespace) -> "Rules":
    from jaxlm.research.budget import parse
    from jaxlm.research.plan import Rules

    if not 0 <= args.smallest_effect < float("inf"):
        raise ConfigError(f"--smallest-effect must be >= 0, got {args.smallest_effect}")
    if args.no_worse_than is not None and not 0 < args.no_worse_than < float("inf"):
        raise ConfigError(f"--no-worse-than must be > 0, got {args.no_worse_than}")
    if args.no_worse_than and args.smallest_effect:
        raise ConfigError(
            "--no-worse-than and --smallest-effect exclude each other: arms either simplify or improve"
        )
    if args.confirm < 0 or args.confirm == 1:
        raise ConfigError(f"--confirm must be 0 or at least 2 seeds, got {args.confirm}")
    _check_few("--confirm", args.confirm)
    return Rules(
        metric=args.metric, smallest_effect=args.smallest_effect, margin=args.no_worse_than,
        hypothesis=args.hypothesis, predicted=_prediction(args.predict),
        budget=parse(args.budget) if args.budget is not None else None,
        any_horizon=args.any_horizon, promote=tuple(args.promote), confirm=args.confirm,
    )  # fmt: skip


def _prediction(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        effect, low, high = (float(part) for part in text.split(","))
    except ValueError:
        effect, low, high = 0.0, 1.0, 0.0
    if not -float("inf") < low <= effect <= high < float("inf"):
        raise ConfigError(
            f"--predict {text!r}: write EFFECT,LOW,HIGH in numbers, LOW <= EFFECT <= HIGH, such as "
            "-0.02,-0.04,0"
        )
    return effect, low, high


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Numbers as numbers, everything else as text."""
    found: dict[str, Any] = {}
    if args.worker_option and args.on == "local":
        raise ConfigError("--worker-option is for --on ray and --on slurm; local workers take none")
    for text in args.worker_option:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--worker-option {text!r}: write KEY=VALUE, such as num_gpus=1")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
