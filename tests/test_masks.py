"""The masks say who attends to whom; here they are literal matrices."""

import jax.numpy as jnp
import numpy as np

from pi0_jax.models import masks

# Three prefix tokens of which the second is padding; horizon 2.
VALID = jnp.array([[True, False, True]])


def rows(text: str) -> np.ndarray:
    return np.array(
        [[c == "1" for c in line if c in "01"] for line in text.split("\n") if line.strip()]
    )


def test_full_mask_of_one_draw_is_the_published_one():
    expected = rows("""
        101 0 00
        101 0 00
        101 0 00
        101 1 00
        101 1 11
        101 1 11
    """)
    np.testing.assert_array_equal(masks.full_mask(VALID, horizon=2, draws=1)[0], expected)


def test_draws_share_prefix_and_state_and_do_not_see_each_other():
    expected = rows("""
        101 0 00 00
        101 0 00 00
        101 0 00 00
        101 1 00 00
        101 1 11 00
        101 1 11 00
        101 1 00 11
        101 1 00 11
    """)
    np.testing.assert_array_equal(masks.full_mask(VALID, horizon=2, draws=2)[0], expected)


def test_suffix_mask_is_the_lower_part_of_the_full_mask():
    full = masks.full_mask(VALID, horizon=2, draws=2)
    np.testing.assert_array_equal(masks.suffix_mask(VALID, horizon=2, draws=2), full[:, 3:])


def test_padding_takes_no_position():
    np.testing.assert_array_equal(masks.prefix_positions(VALID)[0, [0, 2]], [0, 1])
    np.testing.assert_array_equal(masks.suffix_positions(VALID, horizon=2, draws=1)[0], [2, 3, 4])


def test_draws_stand_at_the_same_positions():
    np.testing.assert_array_equal(
        masks.suffix_positions(VALID, horizon=2, draws=2)[0], [2, 3, 4, 3, 4]
    )
