# SPDX-License-Identifier: Apache-2.0
"""Everything that a step's program depends on: what names it in the cache, and what an executable must match."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.core.canonical import to_jsonable
from jaxlm.train.compiler import from_environment

ROOT = Path(__file__).parents[2]
TRACED = (
    "core",
    "model",
    "nn",
    "optim",
    "sharding",
    "train",
    "loss.py",
    "evaluate.py",
    "config.py",
)

# Of JAX's settings those that make another program, or the same one with other numbers.  The rest of
# what jit goes by only refuses, warns or says more.  Not every version of JAX has all of them.
SETTINGS = (
    "jax_accurate_erf_inv",
    "jax_allow_f16_reductions",
    "jax_auto_pcast",
    "jax_compiler_enable_remat_pass",
    "jax_custom_jvp3",
    "jax_custom_vjp3",
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_custom_prng",
    "jax_enable_pgle",
    "jax_enable_x64",
    "jax_error_checking_behavior_divide",
    "jax_error_checking_behavior_nan",
    "jax_error_checking_behavior_oob",
    "jax_exec_time_optimization_effort",
    "jax_explicit_x64_dtypes",
    "jax_high_dynamic_range_gumbel",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_numpy_dtype_promotion",
    "jax_optimization_level",
    "jax_pallas_enable_debug_checks",
    "jax_pallas_poison_buffers",
    "jax_pallas_use_mosaic_gpu",
    "jax_ragged_dot_use_gpu_pallas_triton_lowering",
    "jax_ragged_dot_use_ragged_dot_instruction",
    "jax_random_seed_offset",
    "jax_remat3",
    "jax_scan3",
    "jax_softmax_custom_jvp",
    "jax_threefry_gpu_kernel_lowering",
    "jax_threefry_partitionable",
    "jax_use_direct_linearize",
    "jax_use_emit_pipeline_primitive",
    "jax_use_hlo_logistic_lowering",
    "jax_use_shardy_partitioner",
    "jax_xla_profile_version",
)
OF_NO_PROGRAM = ("xla_force_host_platform_device_count", "xla_dump_")  # how flags start


def surroundings(setting: Callable[[str], Any]) -> dict[str, Any]:
    """All but config and devices that a step's program depends on.

    setting: the value of one of SETTINGS, or "": a plan knows the environment alone and not JAX

    Raises ConfigError for a JAXLM_COMPILER_OPTIONS that cannot be read.
    """
    return {
        "versions": versions(),
        "source": source(),
        "options": from_environment(),
        "XLA_FLAGS": xla_flags(),
        "JAX": {name: value for name in SETTINGS if (value := str(setting(name)))},
    }


def xla_flags() -> dict[str, str]:
    """What XLA_FLAGS says, by name, without what counts simulated devices or writes programs down."""
    text = os.environ.get("XLA_FLAGS", "")
    if not text.lstrip().startswith("-"):  # XLA reads the file of that name
        with contextlib.suppress(OSError):
            text = Path(text).read_text(encoding="utf-8", errors="replace")
    parts = (part.lstrip("-").partition("=") for part in text.split())
    return {name: value or "true" for name, _, value in parts if not name.startswith(OF_NO_PROGRAM)}


def program_config(config: RunConfig) -> dict[str, Any]:
    """The fields that shape the program: learning rates, lengths and seeds are its inputs."""
    values = to_jsonable(config)
    optim, train, data = values["optim"], values["train"], values["data"]
    return {
        "model": values["model"],
        "mesh": values["mesh"],
        "optim": {k: optim[k] for k in ("name", "schedule", "muon_steps")}
        | {"groups": [g["pattern"] for g in optim["groups"]]},
        "train": {k: train[k] for k in ("num_micro_batches", "offload_optimizer", "probe_every")},
        "data": {k: data[k] for k in ("seq_len", "batch_size")},
    }


def versions() -> dict[str, str]:
    """Of all that turns the step into a program."""
    found = {"flags": os.environ.get("LIBTPU_INIT_ARGS", "")}
    for package in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def source() -> str:
    """A digest of the code that is traced."""
    files = [ROOT / "jaxlm" / name for name in TRACED] + [ROOT / "pallas_kernels"]
    found = [f for path in files for f in ([path] if path.is_file() else path.rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(p for p in found if p.suffix in (".py", ".json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
