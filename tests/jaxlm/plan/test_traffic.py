# SPDX-License-Identifier: Apache-2.0
"""HBM bytes of operations whose traffic is plain."""

import pytest

from jaxlm.plan.hlo import parse
from jaxlm.plan.traffic import Traffic

TEXT = """HloModule traffic

%slice (x: f32[8,128], i: s32[]) -> f32[1,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={1,128}
}

%update (x: f32[8,128], u: f32[1,128], i: s32[]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %d = f32[8,128]{1,0} dynamic-update-slice(%x, %u, %i, %zero)
}

%tiled (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(16,128)} parameter(0)
  ROOT %c = f32[8,128]{1,0:T(8,128)} copy(%x)
}

%retiled (x: f32[8,128], u: f32[1,128], i: s32[]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(16,128)} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %v = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiled
  ROOT %d = f32[8,128]{1,0} dynamic-update-slice(%v, %u, %i, %i)
}

%nested (x: f32[8,128], i: s32[]) -> f32[1,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %f = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice
  ROOT %n = f32[1,128]{1,0} negate(%f)
}

%alone (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %s = f32[2,128]{1,0:S(1)} slice(%x), slice={[0:2]}
}

%taken (x: f32[8,128], i: s32[]) -> f32[1,128] {
  %x = f32[8,128]{1,0:S(5)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,128}
}

%stored (x: f32[8,128], u: f32[1,128], i: s32[]) -> f32[8,128] {
  %x = f32[8,128]{1,0:S(5)} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[8,128]{1,0:S(5)} dynamic-update-slice(%x, %u, %i, %i)
}

ENTRY %main () -> f32[] {
  %x = f32[8,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %v = f32[8,128]{1,0:T(8,128)S(1)} parameter(3)
  %whole = f32[8,128]{1,0} add(%x, %x)
  %on_chip = f32[8,128]{1,0:T(8,128)S(1)} add(%x, %v)
  %sliced = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice
  %deep = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%nested
  %updated = f32[8,128]{1,0} fusion(%x, %u, %i), kind=kLoop, calls=%update
  %viewed = f32[8,128]{1,0} fusion(%x, %u, %i), kind=kLoop, calls=%retiled
  %begin = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %end = f32[8,128]{1,0:S(1)} copy-done(%begin)
  %part = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2]}
  %long = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%alone
  %ready = f32[2,128]{1,0:S(1)} async-done(%long)
  %out = (f32[8,128]{1,0:S(5)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %h = f32[8,128]{1,0:S(5)} parameter(4)
  %fetch = ((f32[8,128]{1,0:S(5)}, s32[]), f32[1,128]{1,0}, u32[]) async-start(%h, %i), calls=%taken
  %store = ((f32[8,128]{1,0:S(5)}, f32[1,128]{1,0}), f32[8,128]{1,0:S(5)}, u32[]) async-start(%h, %u, %i), calls=%stored
  %ragged = f32[8,128]{1,0} ragged-all-to-all(%u, %x, %i, %i, %i, %i), replica_groups={{0,1}}
  %t = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%x, %t), is_host_transfer=true
  %recv = (f32[8,128]{1,0}, u32[], token[]) recv(%t), is_host_transfer=true
  ROOT %r = f32[] constant(0)
}
"""
ROW = 128 * 4


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("whole", 3 * 8),  # two operands, one result
        ("on_chip", 8),  # the result and the other operand are in vector memory
        ("sliced", 1 + 1),
        ("deep", 1 + 1),
        ("updated", 1 + 1),  # the update is read, and written in place
        ("viewed", 1 + 1),  # tpu7x: a view in another tiling is no copy
        ("begin", 8),
        ("end", 0),
        ("part", 2),
        ("long", 2),  # the same as the compiler writes it down
        ("ready", 0),
        ("out", 8),
        ("fetch", 1),  # a layer of what was stored with the host
        ("store", 1),
        ("send", 8),
        ("ragged", 1 + 1),  # rows that go and rows that come, not their buffer
    ],
)
def test_bytes_of_one_operation(name: str, rows: int) -> None:
    module = parse(TEXT)
    main = module.computations["main"]
    assert Traffic(module).of(main, main.by_name[name]) == rows * ROW


def test_copies_to_the_host_are_told_apart() -> None:
    module = parse(TEXT)
    main = module.computations["main"]
    host = {op.name: Traffic(module).host_bytes(main, op) for op in main.ops}
    assert {name: size for name, size in host.items() if size} == {
        "out": 8 * ROW,
        "fetch": ROW,
        "store": ROW,
    }
