# SPDX-License-Identifier: Apache-2.0
"""Descriptions of GPUs that need not be there, for XLA's ahead-of-time compiler."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """What decides whether a program compiles, from NVIDIA's data sheets."""

    capability: tuple[int, int]
    cores: int
    shared_memory: int  # bytes that a program may use
    bandwidth: int  # bytes per second
    memory: int  # bytes


TARGETS = {
    "h100": Gpu((9, 0), 132, 232448, 3352 * 10**9, 80 << 30),
    "h200": Gpu((9, 0), 132, 232448, 4800 * 10**9, 141 << 30),
    "a100": Gpu((8, 0), 108, 166912, 2039 * 10**9, 80 << 30),
    "l4": Gpu((8, 9), 58, 101376, 300 * 10**9, 24 << 30),
}


TEMPLATE = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {per_core}
  shared_memory_per_block_optin: {gpu.shared_memory}
  threads_per_core_limit: 1536
  core_count: {gpu.cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: 41943040
  clock_rate_ghz: 1.5
  device_memory_size: {gpu.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}"
  device_address_bits: 64
  name: "NVIDIA {name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""


def target_config(chip: str) -> str:
    """XLA's GpuTargetConfigProto as text."""
    gpu = TARGETS[chip]
    major, minor = gpu.capability
    features = "feature_extension: ACCELERATED_FEATURES" if major == 9 else ""
    return TEMPLATE.format(
        gpu=gpu, major=major, minor=minor, features=features, name=chip.upper(),
        per_core=gpu.shared_memory + 1024,
    )  # fmt: skip
