# SPDX-License-Identifier: Apache-2.0
"""Descriptions of GPUs for a compiler that has none at hand: XLA's GpuTargetConfigProto as text.

Values: openxla/xla, xla/backends/gpu/target_config/specs/{h100_sxm,h200}.txtpb.  Rates per unit are
left out: they serve XLA's choice of tile sizes, and nothing here reads times of a GPU program.
"""

from jaxlm.plan.chips import Chip

MEMORY = {"h100": (84942979072, 3352320000000), "h200": (151397597184, 4800000000000)}

_SPEC = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def spec_of(chip: Chip) -> str:
    """The description of one GPU."""
    memory, bandwidth = MEMORY[chip.name]
    return _SPEC.format(memory=memory, bandwidth=bandwidth, name=chip.device_kind)
