# SPDX-License-Identifier: Apache-2.0
"""How long, how often, from what seed.  Standard library only."""

import dataclasses

from jaxlm.core.checks import require

MOST_STEPS = 2**31 - 1  # the state counts updates in an int32
MOST_TOKENS = 1 << 20  # of one continuation: the keys and values of all lie in memory
MOST_SEED = 2**32 - 1  # jax.random.key would cut a larger one to 32 bits, without a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop around the step."""

    num_steps: int  # completed updates at the end of the run
    seed: int = 0  # of the initial parameters and of the samples
    num_micro_batches: int = 1  # gradient accumulation: the batch is done in this many parts
    offload_optimizer: bool = False  # its state rests in the hosts' memory between updates
    probe_every: int | None = 20  # updates between two looks inside (train/probes.py); None: never
    log_every: int = 10  # updates between two telemetry rows on the terminal; the file gets all
    eval_every: int = 250  # updates between two validations; one always follows the last update
    eval_batches: int | None = (
        None  # batches of the validations on the way; None: all.  The last is whole
    )
    checkpoint_every: int = 500  # one always follows the last update
    keep_checkpoints: int = 2  # the newest ones that stay
    sample_every: int | None = None  # updates between two samples; None: only at the end
    sample_prompts: tuple[str, ...] = ("import ", "The ")
    sample_tokens: int = 128
    tensorboard: bool = False  # write event files too
    profile_steps: tuple[int, int] | None = None  # first and last update of a profiler trace

    def __post_init__(self) -> None:
        for name in ("num_micro_batches", "log_every", "eval_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"TrainConfig.{name}", getattr(self, name), ">= 1")
        for name, least, most in (
            ("num_steps", 1, MOST_STEPS),
            ("sample_tokens", 1, MOST_TOKENS),
            ("seed", 0, MOST_SEED),
        ):
            value = getattr(self, name)
            allowed = f"between {least} and {most}"
            require(least <= value <= most, f"TrainConfig.{name}", value, allowed)
        # two: while the newest is being written, the one before it must still stand
        require(
            self.keep_checkpoints >= 2,
            "TrainConfig.keep_checkpoints",
            self.keep_checkpoints,
            ">= 2",
        )
        for name in ("eval_batches", "sample_every", "probe_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"TrainConfig.{name}", value, ">= 1 or None")
        if self.profile_steps is not None:
            first, last = self.profile_steps
            require(
                1 <= first <= last,
                "TrainConfig.profile_steps",
                self.profile_steps,
                "1 <= first <= last",
            )
            require(
                last <= self.num_steps,
                "TrainConfig.profile_steps",
                self.profile_steps,
                f"within TrainConfig.num_steps={self.num_steps}",
            )
