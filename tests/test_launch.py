# SPDX-License-Identifier: Apache-2.0
"""Launch scripts, against stand-ins for the engines: what they would start, and with what."""

import copy
import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
SCHEMA = json.loads((ROOT / "tests" / "goldens" / "jobset_schema.json").read_text())
MANIFEST = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())


def test_the_manifest_is_a_job_set() -> None:
    jsonschema.validate(MANIFEST, SCHEMA)
    (job,) = MANIFEST["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    args = spec["template"]["spec"]["containers"][0]["args"]
    assert f"MeshConfig.slice={job['replicas']}" in args


@pytest.mark.parametrize(("field", "value"), [("replicas", "2"), ("replica", 2)])
def test_a_manifest_with_a_mistake_is_refused(field: str, value: object) -> None:
    wrong = copy.deepcopy(MANIFEST)
    wrong["spec"]["replicatedJobs"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def run(folder: Path, tools: dict[str, str], script: str, *words: str) -> tuple[int, str]:
    """(exit code, what the stand-ins were called with); each tool is a line of shell."""
    calls = folder / "calls"
    for name, line in tools.items():
        tool = folder / name
        tool.write_text(f'#!/bin/bash\necho "{name} $*" >> {calls}\n{line}\n')
        tool.chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run([SCRIPTS / script, *words], env=env, capture_output=True, check=False)
    return done.returncode, calls.read_text() if calls.exists() else done.stderr.decode()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True)])
def test_a_slurm_job_that_was_stopped_queues_again(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    tools = {"srun": f"exit {code}", "scontrol": ""}
    found, calls = run(tmp_path, tools, "launch_slurm.sh", "train", "a b.gin")
    assert found == code
    assert calls.startswith("srun --label jaxlm train a b.gin\n")
    assert ("scontrol requeue 17\n" in calls) == requeued


def test_every_host_of_a_tpu_slice_gets_the_same_command(tmp_path: Path) -> None:
    answers = 'case "$*" in *len*) echo 4;; *ipAddress*) echo 10.0.0.7;; esac'
    words = ("my-slice", "us-east5-b", "train", "x.gin", "--set", "MeshConfig.fsdp = 8")
    code, calls = run(tmp_path, {"gcloud": answers}, "launch_tpu_vm.sh", *words)
    assert code == 0
    _, start = calls.split("ssh my-slice --zone=us-east5-b --worker=all")
    assert "jaxlm train x.gin --set MeshConfig.fsdp\\ =\\ 8 " in start
    assert "--coordinator 10.0.0.7:8476 --num-processes 4 --process-id $me" in start


def test_a_tpu_slice_without_a_name_is_refused(tmp_path: Path) -> None:
    code, message = run(tmp_path, {}, "launch_tpu_vm.sh", "my-slice")
    assert code == 2
    assert message.startswith("usage: ")
