# SPDX-License-Identifier: Apache-2.0
"""What a plan knows of each chip, per JAX device.  Standard library only.

Peaks, bandwidths, links:  docs.cloud.google.com/tpu/docs/{v6e,v5p,tpu7x} and the tables of
                           jax-ml.github.io/scaling-book (a tpu7x chip is two JAX devices)
Usable memory of TPUs:     what the compiler says is there when a program does not fit
                           ("... of 31.25G hbm"), libtpu 0.0.42.1
Link to the host:          the scaling book's tables (PCIe); of tpu7x nobody has published it, and
                           v5p's stands in; of GPUs PCIe 5.0 x16
Between slices:            the chip's share of the data-centre network (docs.cloud.google.com/tpu/docs:
                           tpu7x has 50, 100 and 100 Gb/s for v5p, v6e and tpu7x, v5e 6.4 Tb/s for 256)
GPUs:                      the vendor's data sheets, dense bf16, SXM; usable memory unknown, so none
                           is taken off
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a kind.  Bandwidths in bytes/s, one way."""

    name: str
    device_kind: str  # as JAX calls it
    peak_flops: float  # bf16
    hbm_bandwidth: float
    hbm_bytes: int  # that a program may fill
    link_bandwidth: float  # of one link between chips, per device
    host_bandwidth: float  # of the link to the host
    slice_bandwidth: float  # of the data-centre network between slices; 0 for GPUs
    torus: tuple[int, ...]  # longest side of a slice by axis; () for GPUs
    devices_per_chip: int = 1

    @property
    def is_tpu(self) -> bool:
        return bool(self.torus)


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 197e12, 819e9, int(15.75 * GIB), 45e9, 16e9, 3.125e9, (16, 16)),
        Chip("v5p", "TPU v5", 459e12, 2765e9, int(95.74 * GIB), 90e9, 16e9, 6.25e9, (16, 20, 28)),
        Chip("v6e", "TPU v6 lite", 918e12, 1640e9, int(31.25 * GIB), 90e9, 32e9, 12.5e9, (16, 16)),
        Chip(
            "tpu7x", "TPU7x", 1153.5e12, 3690e9, int(94.75 * GIB), 50e9, 16e9, 6.25e9, (16, 24, 24),
            devices_per_chip=2,
        ),
        Chip("h100", "NVIDIA H100 80GB HBM3", 989e12, 3352e9, 80 * 10**9, 450e9, 64e9, 0.0, ()),
        Chip("h200", "NVIDIA H200", 989e12, 4800e9, 141 * 10**9, 450e9, 64e9, 0.0, ()),
    )
}  # fmt: skip
HOP_S = 1e-6  # latency of one hop between neighbours (scaling-book, "about 1 us")
