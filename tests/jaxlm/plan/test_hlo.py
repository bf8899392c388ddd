# SPDX-License-Identifier: Apache-2.0
"""Programs as text, small enough to count by hand: loops, shapes, operations."""

from pathlib import Path

import pytest

from jaxlm.plan.hlo import HBM, arrays_of, parse

PROGRAMS = Path(__file__).parent / "programs"

NESTED = """HloModule nested

%inner_body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0} constant({...})
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %y)
}

%inner_condition (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%outer_body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %begin = (s32[], f32[8,16]{1,0}) tuple(%two, %x)
  ROOT %loop = (s32[], f32[8,16]{1,0}) while(%begin), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: f32[8,16]) -> (s32[], f32[8,16]) {
  %x = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8,16]{1,0}) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[8,16]{1,0}) while(%begin), condition=%outer_condition, body=%outer_body,
    backend_config={KNOWN}
}
"""


def nested(known: str) -> str:
    return NESTED.replace("KNOWN", known)


def test_turns_of_nested_loops_multiply() -> None:
    """The inner one counts from 2 to 7, the outer one states its 3."""
    module = parse(nested('"known_trip_count":{"n":"3"}'))
    assert module.times == {"main": 1, "outer_body": 3, "inner_body": 15}
    assert module.unknown_loops == ()


def test_a_loop_that_does_not_say_how_often_it_turns_is_named() -> None:
    module = parse(nested(""))
    assert module.times["inner_body"] == 5
    assert module.unknown_loops == ("loop",)


def test_loops_of_a_real_program_turn_once_per_layer() -> None:
    module = parse((PROGRAMS / "fsdp_scan.hlo").read_text(encoding="utf-8"))
    assert sorted(module.times.values()) == [1, 4, 4]


@pytest.mark.parametrize(
    ("shape", "num_bytes", "space"),
    [
        ("bf16[4,128]{1,0:T(8,128)(2,1)}", 1024, HBM),
        ("f32[3]{0:T(128)S(1)}", 12, 1),
        ("s4[5]{0}", 2.5, HBM),
        ("pred[]", 1, HBM),
        ("f32[0,7]{1,0}", 0, HBM),
    ],
)
def test_an_array_has_bytes_and_a_place(shape: str, num_bytes: float, space: int) -> None:
    (array,) = arrays_of(shape)
    assert (array.num_bytes, array.space) == (num_bytes, space)


def test_tokens_and_contexts_are_no_arrays() -> None:
    arrays = arrays_of("(f32[2]{0}, token[], (bf16[4]{0:S(5)}, u32[]{:S(2)}))")
    assert [a.dtype for a in arrays] == ["f32", "bf16", "u32"]
    assert [a.space for a in arrays] == [0, 5, 2]


def test_attributes_over_several_lines_belong_to_their_operation() -> None:
    text = nested("").replace("condition=%outer_condition,", "condition=%outer_condition,\n {x}\n")
    assert parse(text).times["inner_body"] == 5


def test_a_line_of_attributes_may_begin_with_the_braces_that_end_them() -> None:
    """As the metadata of jax's splash kernel do, in the middle of a computation."""
    attributes = 'frontend_attributes={kernel_metadata={\n"blocks":"{1}"\n}}, condition='
    text = nested("").replace("while(%begin), condition=", f"while(%begin), {attributes}")
    assert parse(text).times["inner_body"] == 5
    tail = "rhs_contracting_dims={0}, kernel_metadata={\n}}"
    module = parse(nested("").replace("rhs_contracting_dims={0}", tail))
    assert len(module.computations["inner_body"].ops) == 6


def test_a_computation_of_another_core_ends_with_its_thread() -> None:
    text = nested("").replace("tuple(%i, %y)\n}", 'tuple(%i, %y)\n}, execution_thread="sparsecore"')
    assert parse(text).times["inner_body"] == 5


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule empty\n")
