# SPDX-License-Identifier: Apache-2.0
"""Predicted time of small programs whose answer is plain."""

from jaxlm.plan.hlo import Op, parse
from jaxlm.plan.timeline import Cost, step_time
from tests.jaxlm.plan.test_collectives import ASYNC
from tests.jaxlm.plan.test_hlo import nested


def test_what_runs_beside_an_asynchronous_collective_hides_it() -> None:
    for work, end, waited in ((3.0, 5.0, 2.0), (9.0, 9.0, 0.0)):

        def cost(name: str, op: Op, work: float = work) -> Cost:
            if op.name == "begin":
                return Cost(network=5.0, is_async=True)
            return Cost(work=work) if op.name == "middle" else Cost()

        clock = step_time(parse(ASYNC), cost)
        assert (clock.now, clock.waited) == (end, waited)


def test_a_synchronous_one_is_waited_for() -> None:
    costs = {"begin": Cost(network=5.0), "middle": Cost(work=3.0, memory=4.0)}
    clock = step_time(parse(ASYNC), lambda name, op: costs.get(op.name, Cost()))
    assert (clock.now, clock.waited) == (9.0, 5.0)


def test_copies_follow_each_other_and_are_waited_for() -> None:
    costs = {"begin": Cost(memory=5.0, is_async=True), "middle": Cost(work=1.0)}
    clock = step_time(parse(ASYNC), lambda name, op: costs.get(op.name, Cost()))
    assert (clock.now, clock.waited, clock.stalled) == (5.0, 0.0, 4.0)


def test_the_host_has_a_link_of_its_own() -> None:
    costs = {"begin": Cost(memory=1.0, host=5.0, is_async=True), "middle": Cost(work=1.0)}
    clock = step_time(parse(ASYNC), lambda name, op: costs.get(op.name, Cost()))
    assert (clock.now, clock.host, clock.memory, clock.stalled) == (5.0, 5.0, 0.0, 4.0)


def test_what_goes_to_other_slices_has_links_of_its_own() -> None:
    costs = {"begin": Cost(network=5.0, is_far=True, is_async=True), "middle": Cost(network=2.0)}
    clock = step_time(parse(ASYNC), lambda name, op: costs.get(op.name, Cost()))
    assert (clock.now, clock.far, clock.waited) == (5.0, 5.0, 5.0)


def test_loops_turn() -> None:
    module = parse(nested('"known_trip_count":{"n":"3"}'))
    clock = step_time(module, lambda name, op: Cost(work=float(op.kind == "dot")))
    assert clock.now == 3 * 5
