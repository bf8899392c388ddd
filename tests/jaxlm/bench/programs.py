# SPDX-License-Identifier: Apache-2.0
"""A program written by hand in the form of the compiler's dumps, to be counted on fingers."""

from pathlib import Path

# bundles 0..1 before a loop over 2..24 (its branch at 19, five delay slots); inside it a branch
# at 3 skips 8..9, and an inner loop repeats 10..15
PROGRAM = """= control target key start
     0   :  { %s0 = inlined_call_operand.vmem [shape: s32[32]] }
   0x1   :  { %s1 = smov 0 }
   0x2 LB: > { %s2 = sadd.s32 1, %s1 }
   0x3   : > { %9 = sbr.rel (%p1) target bundleno = 10 (0xa), region = 32 ;;
   continued %s4 = sadd }
   0x8 PB: > { %v1 = vadd }
   0xa   : >> { %v2 = vmatmul ;; %p2 = scmp.ge.s32.totalorder %s7, 7 /* loop exit test */ }
   0xb   : >> { %10 = sbr.rel (!%p2) target bundleno = 10 (0xa), region = 2 }
  0x10   : > { %v3 = vst ;; %p3 = scmp.ge.s32.totalorder %s2, 12 /* loop exit test */ }
  0x13   : > { %11 = sbr.rel (!%p3) target bundleno = 2 (0x2), region = 3 }
  0x19   :  { %s9 = smov }
"""
UNITS = ("MXU, VALU, VLOAD:FILL, VSTORE:SPILL", "2 4 3 2")


def dump(folder: Path, name: str = "17-kernel.1") -> None:
    (folder / f"{name}-65-packed-bundles-post-ra.txt").write_text(PROGRAM)
    (folder / f"{name}-64-schedule-analysis_packed-bundles-post-ra.txt").write_text("other")
    rows = ["2 0 1 0" if 10 <= i < 16 else "0 1 0 0" for i in range(26)]
    text = "\n".join(["== CAPACITY:", *UNITS, "", "== UTILIZATION:", *rows, ""])
    (folder / f"{name}-68-pre-delay_hlo-static-per-bundle-utilization.txt").write_text(text)
