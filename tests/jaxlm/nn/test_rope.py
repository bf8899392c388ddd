# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding: published frequencies, and what a rotation must keep.

Legend: T positions  H head width
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.nn.rope import apply_rope, rope_frequencies, rope_tables
from tests.reference import decoder
from tests.reference.compare import relative_error

SCALINGS = ["none", "linear", "ntk", "yarn", "llama3"]
# Llama 3.1: theta 500000, factor 8, low 1, high 4, original context 8192, head width 128.  One
# value from each of: kept, between (29 to 34), divided by 8.  Evaluated in float64 from the
# formulas of Hugging Face `transformers` (modeling_rope_utils), to which this file owes nothing.
LLAMA3_PAIRS = {
    0: 1.0,
    1: 0.8146172338565447,
    28: 0.0032114459947525913,
    29: 0.002166570763503359,
    32: 0.0005248461609929547,
    34: 0.00017850781276799638,
    35: 9.556212353964683e-05,
    63: 3.068925988914511e-07,
}
# YaRN: theta 10000, factor 4, original context 4096, head width 128: ramp from pair 20 to pair 46.
YARN_PAIRS = {
    0: 1.0,
    20: 0.056234132519034905,
    21: 0.047292038501684786,
    32: 0.006538461538461538,
    45: 0.0004294025889973582,
    46: 0.000333380358040831,
    63: 2.8869549617236455e-05,
}


def turned(x_TH: np.ndarray, positions_T: np.ndarray, scaling: str = "none") -> np.ndarray:
    """One head's vectors at the given positions."""
    frequencies, gain = rope_frequencies(x_TH.shape[-1], 50.0, scaling, 3.0, 100)
    tables = rope_tables(jnp.asarray(positions_T)[None], frequencies, gain)
    return np.asarray(apply_rope(jnp.asarray(x_TH)[None, :, None, :], tables))[0, :, 0]


def vectors(T: int, H: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(T, H)).astype(np.float32)


def test_llama3_frequencies_are_the_published_ones():
    frequencies, gain = rope_frequencies(128, 500_000.0, "llama3", 8.0, 8192)
    assert gain == 1.0
    for pair, expected in LLAMA3_PAIRS.items():
        assert frequencies[pair] == pytest.approx(expected, rel=1e-9), pair


def test_yarn_frequencies_and_gain_are_the_published_ones():
    frequencies, gain = rope_frequencies(128, 10_000.0, "yarn", 4.0, 4096)
    assert gain == pytest.approx(1.138629436111989, rel=1e-12)
    for pair, expected in YARN_PAIRS.items():
        assert frequencies[pair] == pytest.approx(expected, rel=1e-9), pair


def test_ntk_keeps_the_first_pair_and_interpolates_the_last():
    plain, _ = rope_frequencies(128, 10_000.0)
    ntk, gain = rope_frequencies(128, 10_000.0, "ntk", 4.0)
    assert (ntk[0], gain) == (plain[0], 1.0)
    assert ntk[-1] == pytest.approx(plain[-1] / 4, rel=1e-12)
    assert np.all(np.diff(np.log(ntk / plain)) < 0)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "original_len"),
    [(4, 50.0, 2.0, 40), (6, 1e4, 1.0, 4096), (64, 1e6, 7.5, 2000), (128, 5e5, 8.0, 8192)],
)
def test_frequencies_agree_with_the_reference(scaling, head_dim, theta, factor, original_len):
    c = ModelConfig(
        vocab_size=1,
        num_layers=1,
        embed_dim=1,
        num_heads=1,
        ffn_dim=1,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        rope_factor=factor,
        rope_original_len=original_len,
    )
    frequencies, gain = rope_frequencies(head_dim, theta, scaling, factor, original_len)
    expected = [decoder.frequency(pair, c) for pair in range(head_dim // 2)]
    np.testing.assert_allclose(frequencies, expected, rtol=1e-12)
    np.testing.assert_allclose(gain, np.linalg.det(decoder.rotation(7, c)) ** (1 / head_dim))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_factor_of_one_changes_nothing(scaling):
    frequencies, gain = rope_frequencies(16, 100.0, scaling, 1.0, 64)
    np.testing.assert_allclose(frequencies, rope_frequencies(16, 100.0)[0], rtol=1e-12)
    assert gain == 1.0


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scores_depend_on_the_distance_of_positions_only(scaling):
    q, k = vectors(7, 10, seed=1), vectors(7, 10, seed=2)

    def scores(start):
        return turned(q, start + np.arange(7), scaling) @ (
            turned(k, start + np.arange(7), scaling).T
        )

    # an angle near 60 rad is off by 60 * 2^-23 = 7e-6 in f32
    assert relative_error(scores(53), scores(0)) < 2e-5
    assert relative_error(turned(q, np.arange(7), scaling), q) > 0.1


def test_position_zero_is_the_identity_and_every_position_keeps_the_length():
    x = vectors(9, 12)
    np.testing.assert_array_equal(turned(x, np.zeros(9, np.int32)), x)

    def lengths(x):
        return np.linalg.norm(x, axis=-1)

    np.testing.assert_allclose(lengths(turned(x, np.arange(9))), lengths(x), rtol=1e-6)


def test_the_first_pair_turns_from_the_first_half_to_the_second():
    """A sign: at position 1 the unit vector of dimension 0 becomes (cos 1, ..., sin 1, ...)."""
    turned_once = turned(np.eye(1, 6, dtype=np.float32), np.ones(1, np.int32))[0]
    np.testing.assert_allclose(turned_once[[0, 3]], [np.cos(1), np.sin(1)], rtol=1e-6)
    assert not turned_once[[1, 2, 4, 5]].any()


def test_far_positions_are_as_exact_as_float32_angles_allow():
    """position * frequency is rounded twice, so the angle is off by at most angle * 2^-23."""
    positions = np.array([1000, 131_071])
    frequencies, gain = rope_frequencies(128, 500_000.0, "llama3", 8.0, 8192)
    cos, sin = rope_tables(jnp.asarray(positions)[None], frequencies, gain)
    angles = positions[:, None] * frequencies
    errors = np.hypot(cos[0, :, 0] - np.cos(angles), sin[0, :, 0] - np.sin(angles))
    assert np.all(errors <= angles * 2.0**-23 + 2.0**-22)


def test_results_have_the_dtype_of_the_input():
    x = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    assert (
        apply_rope(x, rope_tables(jnp.arange(3)[None], *rope_frequencies(4, 50.0))).dtype == x.dtype
    )


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="longrope"):
        rope_frequencies(8, 1e4, "longrope", 2.0)
