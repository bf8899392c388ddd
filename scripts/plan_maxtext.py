# SPDX-License-Identifier: Apache-2.0
"""MaxText's train step as the TPU compiler schedules it, read as `jaxlm plan` reads its own.

    python scripts/plan_maxtext.py CHECKOUT PYTHON PROGRAM ... [--folder DIR]
    python scripts/plan_maxtext.py ~/maxtext ~/maxtext/.venv/bin/python llama2_7b_v5p llama2_70b_v5p

CHECKOUT is MaxText's repository, PYTHON an interpreter of 3.12 or later that imports it; no TPU and no
machine code are needed (plan/schedule.py).  An environment that has all that MaxText's `train_compile`
imports at commit e591f30c, and nothing in its place:

    python3.12 -m venv .venv && .venv/bin/pip install jax==0.10.2 flax==0.12.8 libtpu==0.0.42.1 \\
        optax orbax-checkpoint absl-py pyyaml pydantic omegaconf aqtp qwix tokamax drjax jaxtyping \\
        sentencepiece einops psutil tabulate jinja2 grain transformers huggingface_hub pathwaysutils \\
        pillow tiktoken sympy ml-goodput-measurement

DIR/PROGRAM keeps program and facts, and figures.json what was read of them; a program that is there is
read again.  **Every time is predicted.**  Model FLOPs are MaxText's own count.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from peers.maxtext_kernels import Kernels

from jaxlm.plan.chips import GIB
from jaxlm.plan.network import Network
from jaxlm.plan.program import Reading, read_with
from jaxlm.plan.text import collective_lines, kernels_and_traffic
from jaxlm.plan.topology import Topology, parse_topology

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Program:
    """A step of MaxText's: its name for the slice, an entry of its benchmarks, and what is added.

    published: tokens/s/chip that its documentation reports of the recipe.
    """

    topology: str
    slice: str
    recipe: str
    options: str = ""
    flags: str = ""
    published: float | None = None


PLAIN = (
    "ici_fsdp_parallelism=-1 dataset_type=synthetic enable_checkpointing=false use_iota_embed=true"
)
PROGRAMS = {
    "llama2_7b_v5p": Program("v5p:4x4x4", "v5p-128", "v5p:llama2_7b_v5p_128"),
    "llama2_70b_v5p": Program("v5p:8x8x8", "v5p-1024", "v5p:llama2_70b_v5p_128"),
    "llama31_8b_v6e": Program("v6e:16x16", "v6e-256", "trillium:llama3_1_8b_8192", published=7207),
    "deepseek2_16b_v5p": Program(  # no recipe of MaxText's
        "v5p:4x4x4", "v5p-128", "-",
        f"{PLAIN} model_name=deepseek2-16b per_device_batch_size=4 max_target_length=4096"
        " attention=flash remat_policy=full megablox=true sparse_matmul=true",
    ),
    "mixtral_v5p": Program(  # its recipe for v6e
        "v5p:4x4x8", "v5p-256", "trillium:mixtral_8x7b_dropless"
    ),
    "llama31_70b_tpu7x": Program(  # no recipe of MaxText's
        "tpu7x:4x4x4", "tpu7x-128", "-",
        f"{PLAIN} model_name=llama3.1-70b per_device_batch_size=2 max_target_length=8192"
        " attention=flash remat_policy=full sa_block_q=2048 sa_block_kv=2048"
        " sa_block_kv_compute=1024 sa_block_q_dkv=2048 sa_block_kv_dkv=2048"
        " sa_block_kv_dkv_compute=1024 sa_use_fused_bwd_kernel=true",
    ),
    "llama2_7b_v6e": Program("v6e:8x8", "v6e-64", "trillium:llama2_7b_4096"),
    # Recipes behind published speeds (docs/reference/models/tiering.md and what it links to); those
    # runs were of older MaxText and jax (0.5.2, 0.6.1)
    "llama2_70b_v5p_4_rows": Program(
        "v5p:8x8x8", "v5p-1024", "v5p:llama2_70b_v5p_128", "per_device_batch_size=4", published=692
    ),
    "llama31_70b_v6e": Program("v6e:16x16", "v6e-256", "trillium:llama3_1_70b_8192", published=960),
    "llama2_70b_v6e": Program(  # the published log has 2 rows a device, its recipe has 3
        "v6e:16x16", "v6e-256", "trillium:llama2_70b_4096_sc", "per_device_batch_size=2",
        published=900,
    ),
    "mixtral_dropped_v6e": Program(
        "v6e:16x16", "v6e-256", "trillium:mixtral_8x7b_dropped", published=3899
    ),
    "mixtral_v5p_36_rows": Program(  # published for "256 chips (8x4x4)": 8x4x4 are 128
        "v5p:4x4x8", "v5p-256", "-",
        "model_name=mixtral-8x7b per_device_batch_size=36 enable_checkpointing=false"
        " max_target_length=4096 dtype=bfloat16 weight_dtype=bfloat16 dataset_type=synthetic"
        " attention=flash",
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
        " --xla_tpu_megacore_fusion_allow_ags=false --xla_enable_async_collective_permute=true"
        " --xla_tpu_enable_ag_backward_pipelining=true"
        " --xla_tpu_enable_data_parallel_all_reduce_opt=true"
        " --xla_tpu_data_parallel_opt_different_sized_ops=true"
        " --xla_tpu_enable_async_collective_fusion=true"
        " --xla_tpu_enable_async_collective_fusion_multiple_steps=true"
        " --xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
        " --xla_tpu_scoped_vmem_limit_kib=81920",
        published=2909,
    ),
}  # fmt: skip


def compile_schedule(python: str, checkout: str, program: Program, folder: Path) -> None:
    """Leaves program.hlo and facts.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    script = str(HERE / "peers" / "maxtext_schedule.py")
    command = [os.path.expanduser(python), script, os.path.expanduser(checkout), str(folder)]
    command += [program.slice, program.recipe, program.flags, *program.options.split()]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if not (folder / "facts.json").exists():
        raise SystemExit(f"{program.slice}: no schedule; see {folder / 'log.txt'}")


def figures(topology: Topology, facts: dict, reading: Reading, published: float | None) -> dict:
    """What is compared; per device and step unless the name says otherwise."""
    memory = facts["memory"]
    total = memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]
    chips, tokens = topology.num_chips, facts["tokens_per_device"] * topology.num_devices
    steps = {
        "perfect_overlap": reading.fastest_s,
        "best": reading.best_s,
        "no_overlap": reading.slowest_s,
    }
    return {
        "topology": topology.name,
        "mesh": {name: size for name, size in facts["mesh"].items() if size > 1},
        "tokens_per_device": facts["tokens_per_device"],
        "model_flops": facts["model_flops"],
        "executed_flops": reading.flops,
        "useful_frac": facts["model_flops"] / reading.flops,
        "memory_gib": total / GIB,
        "memory_capacity_gib": topology.chip.hbm_bytes / GIB,
        "hbm_gb": reading.hbm_bytes / 1e9,
        "host_gb": reading.host_bytes / 1e9,
        "wire_gb": reading.wire_bytes / 1e9,
        "synchronous_gb": reading.exposed_bytes / 1e9,
        "predicted_step_s": steps,
        "predicted_mfu": {
            name: facts["model_flops"] / s / topology.chip.peak_flops for name, s in steps.items()
        },
        "published_tokens_per_s_per_chip": published,
        "predicted_tokens_per_s_per_chip": {name: tokens / s / chips for name, s in steps.items()},
        "cpu_s": {
            name: facts[f"{name}_cpu_s"] for name in ("import_and_setup", "lowering", "schedule")
        },
        "program": dataclasses.asdict(reading),
        "compiler_rss_gb": facts["host_bytes"] / 1e9,
        "versions": facts["versions"],
        "argv": facts["argv"],
        "libtpu_init_args": facts["flags"],
    }


def screen(name: str, f: dict, reading: Reading) -> str:
    """The lines of `jaxlm plan` that another project's program has."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in f["mesh"].items())
    lines = [
        f"MaxText {name} on {f['topology']}: {mesh}, {f['tokens_per_device']:,} tokens a device",
        f"memory of a device  {f['memory_gib']:.2f} GiB of {f['memory_capacity_gib']:.2f}",
        f"  model FLOPs {f['model_flops'] / 1e12:,.1f} TF, executed {reading.flops / 1e12:,.1f} TF"
        f": {f['useful_frac']:.1%} useful",
        *kernels_and_traffic(reading),
        *collective_lines(reading.collectives),
        f"  not asynchronous {f['synchronous_gb']:,.2f} GB",
        "predicted                 step       MFU  tokens/s/chip",
    ]
    for label, s in f["predicted_step_s"].items():
        rate = f["predicted_tokens_per_s_per_chip"][label]
        lines.append(f"  {label:<16}{s:>10.3f} s  {f['predicted_mfu'][label]:7.1%}  {rate:>13,.0f}")
    if published := f["published_tokens_per_s_per_chip"]:
        share = f["predicted_tokens_per_s_per_chip"]["best"] / published
        lines.append(
            f"  published {published:,.0f} tokens/s/chip; the best estimate is {share:.2f} of it"
        )
    kinds = ", ".join(f"{kind} {s:.3f}" for kind, s in reading.seconds_by_kind.items())
    lines.append(f"  seconds by kind: {kinds}; waiting for network {reading.exposed_s:.3f}")
    cpu = ", ".join(f"{part} {s:.1f} s" for part, s in f["cpu_s"].items())
    return "\n".join([*lines, f"  CPU: {cpu}"])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout")
    parser.add_argument("python")
    parser.add_argument("programs", nargs="+", choices=PROGRAMS, metavar="PROGRAM")
    parser.add_argument("--folder", type=Path, default=Path("maxtext_programs"))
    given = parser.parse_args(argv)
    if not Path(given.checkout).expanduser().joinpath("src", "maxtext").is_dir():
        parser.error(f"{given.checkout} is no checkout of MaxText: it has no src/maxtext")
    for name in given.programs:
        program, folder = PROGRAMS[name], given.folder / name
        topology = parse_topology(program.topology)
        if not (folder / "facts.json").exists():
            compile_schedule(given.python, given.checkout, program, folder)
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        text = (folder / "program.hlo").read_text(encoding="utf-8")
        network = Network(topology, tuple(tuple(place) for place in facts["coords"]))
        reading = read_with(Kernels(text, topology.chip.name), text, facts["mesh"], network)
        found = figures(topology, facts, reading, program.published)
        (folder / "figures.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(screen(name, found, reading), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
