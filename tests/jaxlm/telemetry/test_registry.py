# SPDX-License-Identifier: Apache-2.0
"""The table of metrics says what it should."""

import pytest

from jaxlm.telemetry.registry import METRICS, spec_of

UNIT_OF_SUFFIX = {"_per_s": "tokens/s", "_s": "s", "_frac": "fraction", "_nats": "nats/token"}


@pytest.mark.parametrize("name", METRICS)
def test_the_unit_in_a_name_is_the_unit_of_the_metric(name):
    suffix = next((s for s in UNIT_OF_SUFFIX if name.endswith(s)), None)
    if suffix:
        assert METRICS[name].unit == UNIT_OF_SUFFIX[suffix]
    assert name.count("/") == 1, "group/name"
    assert METRICS[name].unit and METRICS[name].meaning


def test_a_metric_of_one_corpus_has_the_spec_of_the_whole():
    assert spec_of("eval/bpb@web") is METRICS["eval/bpb"]


@pytest.mark.parametrize("name", ["eval/bp", "loss", "@web", ""])
def test_an_unknown_name_is_a_key_error(name):
    with pytest.raises(KeyError):
        spec_of(name)
