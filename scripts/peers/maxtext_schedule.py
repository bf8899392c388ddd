# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler's schedule of MaxText's own train step; see scripts/plan_maxtext.py.

    python maxtext_schedule.py CHECKOUT FOLDER TOPOLOGY RECIPE FLAGS [key=value ...]

TOPOLOGY is MaxText's name (v5p-128), RECIPE an entry of its benchmarks/maxtext_{v5p,trillium}_model_configs
as `v5p:llama2_7b_v5p_128`, or `-` for none, FLAGS more of LIBTPU_INIT_ARGS.  MaxText's `train_compile.main`
runs as it is, up to the call of the compiler; FOLDER gets program.hlo and facts.json.
"""

import importlib
import json
import os
import resource
import sys
import time
import types
from importlib import metadata
from pathlib import Path

CHECKOUT, FOLDER, TOPOLOGY, RECIPE, FLAGS, *OPTIONS = sys.argv[1:]
CHECKOUT, FOLDER = str(Path(CHECKOUT).resolve()), Path(FOLDER).resolve()
sys.path[:0] = [f"{CHECKOUT}/src", CHECKOUT]
# what a step does not depend on: where it logs, what it profiles, and paths of its tokenizer and data
ASIDE = ("gcs_metrics", "profiler", "profiler_steps", "skip_first_n_steps_for_profiler")
ASIDE += ("dataset_path", "tokenizer_path", "tokenizer_type")
BASE = {
    "compile_topology": TOPOLOGY,
    "compile_topology_num_slices": 1,
    "base_output_directory": "out",
    "run_name": "aot",
    "log_config": "false",
    "tokenizer_type": "sentencepiece",
    "tokenizer_path": f"{CHECKOUT}/src/maxtext/assets/tokenizers/tokenizer.llama2",
}

if RECIPE != "-":
    group, _, name = RECIPE.partition(":")
    entries = importlib.import_module(f"benchmarks.maxtext_{group}_model_configs")
    recipe = getattr(entries, f"{group}_model_dict")[name]
    BASE["model_name"] = recipe.model_type
    BASE |= {k: v for k, v in recipe.tuning_params.items() if k not in ASIDE}
    FLAGS = f"{recipe.xla_flags} {FLAGS}"
BASE |= dict(option.split("=", 1) for option in OPTIONS)
os.environ["LIBTPU_INIT_ARGS"] = FLAGS.strip()  # read once, when libtpu is loaded
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
from maxtext.trainers.pre_train import train_compile
from maxtext.utils.maxtext_utils import calculate_tflops_training_per_device

from jaxlm.plan.schedule import schedule_of

versions = {name: metadata.version(name) for name in ("jax", "libtpu", "flax", "optax")}
facts: dict = {"versions": versions, "flags": FLAGS.strip()}
jit_and_compile, compile_fully = train_compile.jit_and_compile, jax.stages.Lowered.compile


def noted(*arguments) -> None:
    """`train_compile.jit_and_compile`, with what it is given written down."""
    mesh, config = arguments[3], arguments[8]
    model_tflops = calculate_tflops_training_per_device(config, log=False)[0]
    facts.update(
        mesh=dict(mesh.shape),
        coords=[[*d.coords, d.core_on_chip] for d in mesh.devices.flat],
        tokens_per_device=int(config.per_device_batch_size * config.max_target_length),
        model_flops=model_tflops * 1e12,
    )
    facts["import_and_setup_cpu_s"] = time.process_time()
    jit_and_compile(*arguments)


def compile_to_schedule(lowered, compiler_options=None) -> None:
    """In the place of `Lowered.compile`: ends the process, for nothing is compiled."""
    before = time.process_time()
    facts["lowering_cpu_s"] = before - facts["import_and_setup_cpu_s"]
    with_dumps = lambda dumps: compile_fully(lowered, {**(compiler_options or {}), **dumps})
    text, facts["memory"] = schedule_of(types.SimpleNamespace(compile=with_dumps), FOLDER)
    facts["schedule_cpu_s"] = time.process_time() - before
    facts["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (FOLDER / "program.hlo").write_text(text, encoding="utf-8")
    (FOLDER / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    os._exit(0)  # the compiler goes on in a thread


train_compile.jit_and_compile, jax.stages.Lowered.compile = noted, compile_to_schedule
os.chdir(CHECKOUT)
arguments = [f"{key}={value}" for key, value in BASE.items()]
facts["argv"] = arguments
train_compile.main(["train_compile.py", "src/maxtext/configs/base.yml", *arguments])
