# SPDX-License-Identifier: Apache-2.0
"""Collectives: kind, bytes on the wire, mesh axes; small texts of known size."""

import collections
from pathlib import Path

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.plan.collectives import (
    Collective,
    collective_of,
    ends,
    mesh_axes,
    replica_groups,
    wire_bytes,
)
from jaxlm.plan.hlo import parse

PROGRAMS = Path(__file__).parent / "programs"

ASYNC = """HloModule asynchronous

%start (a: bf16[16,128]) -> (bf16[16,128], bf16[64,128], u32[]) {
  %a = bf16[16,128]{1,0} parameter(0)
  %ag = bf16[64,128]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %s = (bf16[16,128]{1,0}, bf16[64,128]{1,0}, u32[]{:S(2)}) custom-call(%a, %ag),
    custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (x: bf16[256,256], s: (bf16[16,128], bf16[64,128], u32[])) -> (bf16[256,256], bf16[64,128]) {
  %x = bf16[256,256]{1,0} parameter(0)
  %s = (bf16[16,128]{1,0}, bf16[64,128]{1,0}, u32[]{:S(2)}) parameter(1)
  %a = bf16[16,128]{1,0} get-tuple-element(%s), index=0
  %ag.1 = bf16[64,128]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %y = bf16[256,256]{1,0} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %t = (bf16[256,256]{1,0}, bf16[64,128]{1,0}) tuple(%y, %ag.1)
}

%done (s: bf16[64,128]) -> bf16[64,128] {
  %s = bf16[64,128]{1,0} parameter(0)
  %ag.2 = bf16[64,128]{1,0} all-gather(%s), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %d = bf16[64,128]{1,0} custom-call(%ag.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[16,128], x: bf16[256,256]) -> bf16[64,128] {
  %a = bf16[16,128]{1,0} parameter(0)
  %x = bf16[256,256]{1,0} parameter(1)
  %begin = (bf16[16,128]{1,0}, bf16[64,128]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %middle = (bf16[256,256]{1,0}, bf16[64,128]{1,0}) fusion(%x, %begin), kind=kOutput,
    calls=%async_collective_fusion
  %rest = bf16[64,128]{1,0} get-tuple-element(%middle), index=1
  ROOT %end = bf16[64,128]{1,0} fusion(%rest), kind=kCustom, calls=%done
}
"""


def collectives(text: str) -> list[tuple[Collective, float]]:
    module = parse(text)
    found = []
    for name, times in module.times.items():
        computation = module.computations[name]
        for op in computation.ops:
            if (one := collective_of(module, computation, op)) is not None:
                found.append((one, times))
    return found


def one_line(line: str, operand: str) -> Collective:
    text = f"ENTRY %main () -> f32[] {{\n  %p = {operand} parameter(0)\n  ROOT {line}\n}}"
    ((found, _),) = collectives(text)
    return found


def test_an_all_reduce_of_known_size() -> None:
    """A megabyte over 8 devices by a ring: every device sends it twice, less an eighth."""
    line = "%r = f32[262144]{0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add"
    found = one_line(line, "f32[262144]{0}")
    assert (found.kind, found.is_async, len(found.group)) == ("all-reduce", False, 8)
    assert found.wire_bytes == 2 * 2**20 * 7 / 8


@pytest.mark.parametrize("is_back", [False, True])
def test_a_ragged_all_to_all_sends_rows_and_not_its_buffers(is_back: bool) -> None:
    """1,024 rows of 1 kB to 4 devices, a quarter stays; the other side has room for 4,096."""
    few, many = "bf16[1024,512]{1,0}", "bf16[4096,512]{1,0}"
    rows, buffer = (many, few) if is_back else (few, many)
    lines = [f"  %p{i} = {shape} parameter({i})" for i, shape in enumerate((rows, buffer))]
    lines += [f"  %i{i} = s32[4]{{0}} parameter({i + 2})" for i in range(4)]
    call = (
        f"{buffer} ragged-all-to-all(%p0, %p1, %i0, %i1, %i2, %i3), replica_groups={{{{0,1,2,3}}}}"
    )
    text = "\n".join(["ENTRY %main () -> f32[] {", *lines, f"  ROOT %r = {call}", "}"])
    ((found, _),) = collectives(text)
    assert found.wire_bytes == 1024 * 1024 * 3 / 4


@pytest.mark.parametrize(
    ("kind", "operand", "n", "sent"),
    [
        ("all-gather", 100.0, 4, 300.0),
        ("reduce-scatter", 100.0, 4, 75.0),
        ("all-to-all", 100.0, 4, 75.0),
        ("collective-permute", 100.0, 4, 100.0),
        ("all-reduce", 100.0, 1, 0.0),
    ],
)
def test_wire_bytes_by_a_ring(kind: str, operand: float, n: int, sent: float) -> None:
    assert wire_bytes(kind, operand, n) == sent


def test_an_asynchronous_one_counts_once_at_its_start() -> None:
    ((found, times),) = collectives(ASYNC)
    assert (found.name, found.kind, found.is_async, times) == ("begin", "all-gather", True, 1)
    assert found.wire_bytes == 3 * 16 * 128 * 2


@pytest.mark.parametrize(
    ("kind", "sent"), [("ALL_REDUCE", 2 * 2 / 3), ("ALL_GATHER", 2 / 3), ("REDUCE_SCATTER", 2)]
)
def test_what_goes_from_slice_to_slice_by_the_hosts(kind: str, sent: float) -> None:
    """A megabyte that comes to each of 4 devices of 3 slices; it is sent by a ring of 3."""
    notes = (
        'channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3}x'
        f'{{0:3}}",_xla_megascale_transfer_type="{kind}"}}'
    )
    shape = "(f32[512,512]{1,0}, u32[], token[])"
    text = f"""ENTRY %main () -> f32[] {{
  %p = f32[512,512]{{1,0}} parameter(0)
  %t = token[] after-all()
  %send = {shape} send(%p, %t), {notes}
  %recv = {shape} recv(%t), {notes}
  ROOT %recv-done = (f32[512,512]{{1,0}}, token[]) recv-done(%recv), channel_id=1
}}"""
    ((found, _),) = collectives(text)
    assert (found.name, found.kind) == ("recv", kind.lower().replace("_", "-"))
    assert found.wire_bytes == pytest.approx(sent * 2**20)
    assert mesh_axes(found.group, {"slice": 3, "data": 4}) == ("slice",)
    assert (found.is_async, found.is_far) == (True, True)


def test_its_end_is_what_waits() -> None:
    module = parse(ASYNC)
    assert [op.name for op in module.computations["main"].ops if ends(module, op)] == ["end"]


def test_a_reduce_scatter_of_tpus_is_a_fusion_of_an_all_reduce_and_a_slice() -> None:
    """16 gathers and 8 scatters of 2 MB shards over 4 chips, in 4 layers."""
    sent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for one, times in collectives((PROGRAMS / "fsdp_scan.hlo").read_text(encoding="utf-8")):
        sent[one.kind] += int(one.wire_bytes * times)
        count[one.kind] += int(times)
    assert count == {"all-gather": 16, "reduce-scatter": 8}
    assert sent == {"all-gather": 16 * 3 * 2**21, "reduce-scatter": 8 * 3 * 2**21}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] (0,2,1,3) {'b'}", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'a'}, dimensions={1}",
            ((0, 1, 2), (3, 4, 5)),
        ),
        (
            "replica_groups=mesh['a'=3,'b'=2], device_ids=([2,3]T(1,0)) {'b'}",
            ((0, 3), (1, 4), (2, 5)),
        ),
        ("replica_groups=mesh['a'=2,'b'=3], device_ids=([6]) {'a'}", ((0, 3), (1, 4), (2, 5))),
        ("replica_groups={}", ()),
    ],
)
def test_groups_in_every_way_to_write_them(text: str, groups: tuple[tuple[int, ...], ...]) -> None:
    assert replica_groups(text) == groups


def test_groups_in_another_form_are_not_taken_for_none() -> None:
    with pytest.raises(ConfigError, match=r"cannot read: 'replica_groups=<4x2>,'; plan with"):
        replica_groups("replica_groups=<4x2>, dimensions={0}")


@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ((0, 1), ("model",)),
        ((0, 2, 4), ("fsdp",)),
        ((1, 7), ("data",)),
        ((1, 9), ("data", "fsdp")),
        ((0, 6, 1, 7), ("data", "model")),
        ((3,), ()),
        ((), ("data", "fsdp", "model")),
    ],
)
def test_a_group_runs_over_the_axes_along_which_it_differs(
    group: tuple[int, ...], axes: tuple[str, ...]
) -> None:
    assert mesh_axes(group, {"data": 2, "fsdp": 3, "expert": 1, "model": 2}) == axes
