# SPDX-License-Identifier: Apache-2.0
"""Workers that train nothing: losses come from a formula, files are those of a real run."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxlm.config import RunConfig
from jaxlm.core.canonical import file_sha256, write_json_atomic
from jaxlm.data.prepare import prepare
from jaxlm.research import fingerprint, runner
from jaxlm.research.jobs import Job, JobRun
from jaxlm.research.launch import Hear, Workers
from jaxlm.research.simulate import mix, standard_normal
from jaxlm.train import sealing

NOISE = 0.01


@dataclasses.dataclass
class FakeWorkers:
    """Stand-in for launch.run_jobs.  Effects on the final loss by field value; at a larger scale
    (more layers) others."""

    effects: dict[tuple[str, Any], float]
    larger: dict[tuple[str, Any], float] = dataclasses.field(default_factory=dict)
    diverging: tuple[tuple[str, Any], ...] = ()
    trained: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # run id, updates

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeWorkers":
        monkeypatch.setattr(runner, "run_jobs", self)
        return self

    def __call__(
        self, verb: str, jobs: Sequence[Job], workers: Workers, hear: Hear, project: Path
    ) -> None:
        for run in (run for job in jobs for run in job.runs):
            if verb == "train":
                self._train(run)
            else:
                hear({"run": str(run.directory), "evaluation": self._evaluation(run)})

    def loss(self, config: RunConfig, step: int) -> float:
        fields = dataclasses.asdict(config.optim)
        effects = self.larger if config.model.num_layers > 1 else self.effects
        effect = sum(e for (name, value), e in effects.items() if fields[name] == value)
        key = mix(hash((config.train.seed, config.train.num_steps)))
        own = mix(key ^ int(config.config_id[:12], 16))
        noise = NOISE * (standard_normal(key) + 0.5 * standard_normal(own))
        settled = 2.0 + 4.0 * math.exp(-step / 3) + 0.3 * (step + 1) ** -0.5
        return settled + (effect + noise) * min(1.0, step / config.train.num_steps)

    def _train(self, run: JobRun) -> None:
        config, steps = run.config, run.config.train.num_steps
        end = min(run.until or steps, steps)
        self.trained.append((run.run_id, end))
        run.directory.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for step in range(1, end + 1):
            loss = self.loss(config, step)
            rows.append({"kind": "train", "step": step, "train/loss_nats": loss})
            if step % config.train.eval_every == 0 or step == steps:
                rows.append(
                    {"kind": "eval", "step": step, "eval/bpb": loss, "eval/loss_nats": loss}
                )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run.directory / "telemetry.jsonl").write_text(text)
        write_json_atomic(run.directory / "config.json", config)
        data_id = prepare(config.data).data_id
        write_json_atomic(run.directory / "env.json", {"data_id": data_id})
        folder = run.directory / "checkpoints" / f"{end:08d}"
        (folder / "state").mkdir(parents=True, exist_ok=True)
        (folder / "state" / "params").write_text(run.run_id)
        sealed = sealing.manifest(folder, leaves=["params"], step=end, data_id=data_id)
        write_json_atomic(folder / sealing.MANIFEST, sealed)
        status = "completed" if end == steps else "preempted"
        if any(dataclasses.asdict(config.optim)[name] == value for name, value in self.diverging):
            status = "diverged"
        summary = {"status": status, "step": end, "wall_time_s": float(end)}
        write_json_atomic(run.directory / "summary.json", summary)

    def _evaluation(self, run: JobRun) -> dict[str, Any]:
        steps = run.config.train.num_steps
        loss = self.loss(run.config, steps)
        manifest = run.directory / "checkpoints" / f"{steps:08d}" / "manifest.json"
        return {
            "eval/bpb": loss, "eval/loss_nats": loss, "eval/accuracy_frac": 1 / loss,
            "eval/bytes": 100, "run_id": run.run_id, "step": steps,
            "checkpoint_sha256": file_sha256(manifest), "evaluator": fingerprint.evaluator(),
        }  # fmt: skip
