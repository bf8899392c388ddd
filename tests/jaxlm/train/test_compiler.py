# SPDX-License-Identifier: Apache-2.0
"""What the compiler is told is ours, unless a user says otherwise."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.train.compiler import GATHER, VARIABLE, compiler_options


def slice_of(kind: str, size: int) -> SimpleNamespace:
    """As much of a mesh as is looked at."""
    device = SimpleNamespace(platform="tpu", device_kind=kind)
    return SimpleNamespace(size=size, devices=np.array([device] * size))


def test_a_user_adds_replaces_and_leaves_out(monkeypatch):
    mesh = slice_of("TPU7x", 4)
    assert compiler_options(mesh) == GATHER
    name = "xla_enable_async_all_gather"
    monkeypatch.setenv(VARIABLE, f"--xla_new=3  {name}=")
    assert compiler_options(mesh) == {"xla_new": "3"} | {
        k: v for k, v in GATHER.items() if k != name
    }
    monkeypatch.setenv(VARIABLE, f"{name}=false")
    assert compiler_options(mesh) == GATHER | {name: "false"}


def test_one_device_has_none_of_its_own_and_takes_a_users(monkeypatch):
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    assert compiler_options(mesh) is None
    monkeypatch.setenv(VARIABLE, "xla_backend_optimization_level=1")
    double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options(mesh))
    assert double(jnp.float32(4)) == 8


def test_a_comma_belongs_to_a_value(monkeypatch):
    monkeypatch.setenv(VARIABLE, "a=1,b")
    assert compiler_options(slice_of("TPU7x", 1)) == {"a": "1,b"}


@pytest.mark.parametrize("text", ["xla_new", "a=1 =2"])
def test_what_is_no_option_is_one_line(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{VARIABLE} must be name=value"):
        compiler_options(slice_of("TPU7x", 4))
