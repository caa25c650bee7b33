"""Resizing agrees with PIL, and augmentation with PIL and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from pi0_jax.preprocess import images

SIDE = 64
resize = jax.jit(images.resize_with_pad, static_argnames="side")
augment = jax.jit(images.augment, static_argnames="geometric")
crop_and_rotate = jax.jit(images.crop_and_rotate)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(side: int) -> np.ndarray:
    """Returns uint8[side, side, 3]: soft reddish blobs, which survive two interpolations."""
    pixels = ndimage.gaussian_filter(
        np.random.default_rng(1).normal(size=(side, side, 3)), (side / 10, side / 10, 0)
    )
    return np.uint8((pixels - pixels.min()) / np.ptp(pixels) * (255, 180, 90))


def on_canvas(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Returns the image in the upper left corner of a canvas of garbage."""
    pixels = noise(*canvas, seed=2)
    pixels[: image.shape[0], : image.shape[1]] = image
    return pixels


def resized(image: np.ndarray, canvas: tuple[int, int], side: int = SIDE) -> np.ndarray:
    return np.asarray(
        resize(on_canvas(image, canvas)[None], np.array([image.shape[:2]], np.int32), side=side)[0]
    )


def pil_resize_with_pad(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    longest = max(height, width)
    scaled = max(height * side // longest, 1), max(width * side // longest, 1)
    top, left = (side - scaled[0]) // 2, (side - scaled[1]) // 2
    result = np.zeros((side, side, 3), np.uint8)
    pixels = Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR)
    result[top : top + scaled[0], left : left + scaled[1]] = pixels
    return result.astype(np.float32)


@pytest.mark.parametrize(
    "size",
    [
        (128, 128),
        (96, 128),
        (128, 97),
        (127, 31),
        (64, 48),
        (33, 64),
        (20, 20),
        (37, 53),
        (3, 5),
        (1, 5),
        (1, 1),
        (128, 1),
    ],
)
def test_resizing_is_pils_antialiased_bilinear_with_centred_black_padding(size):
    """PIL rounds after each of its two passes, so one level of difference is allowed."""
    image = noise(*size)
    difference = np.abs(resized(image, (128, 128)) - pil_resize_with_pad(image, SIDE))
    assert difference.max() <= 1.01
    assert difference.mean() <= 0.4


def test_a_camera_image_at_the_published_size():
    image = noise(480, 640)
    result = resized(image, (512, 640), side=224)
    assert np.abs(result - pil_resize_with_pad(image, 224)).max() <= 1.01
    assert not result[:28].any()
    assert not result[-28:].any()
    assert result[28].any()
    assert result[-29].any()


@pytest.mark.parametrize("canvas", [(64, 64), (128, 128), (256, 480)])
def test_an_image_of_the_models_size_comes_back_unchanged(canvas):
    image = noise(SIDE, SIDE)
    np.testing.assert_array_equal(resized(image, canvas), image)


def test_pixels_do_not_depend_on_the_canvas():
    image = noise(45, 61)
    on_smallest = resized(image, (64, 64))
    for canvas in ((128, 128), (256, 480)):
        np.testing.assert_allclose(resized(image, canvas), on_smallest, atol=1e-4)


def test_images_of_a_batch_are_resized_each_by_its_own_size():
    pair = [noise(50, 60), noise(128, 40)]
    batch = np.stack([on_canvas(image, (128, 128)) for image in pair])
    result = resize(batch, np.array([image.shape[:2] for image in pair], np.int32), side=SIDE)
    for image, row in zip(pair, result, strict=True):
        np.testing.assert_allclose(row, resized(image, (128, 128)), atol=1e-4)


def test_unit_range():
    np.testing.assert_allclose(images.to_unit_range(np.array([0.0, 127.5, 255.0])), [-1, 0, 1])


def test_the_smallest_canvas_that_holds_an_image():
    areas = [height * width for height, width in images.CANVASES]
    assert areas == sorted(areas)
    for size, canvas in {
        (1, 1): (64, 64), (64, 64): (64, 64), (65, 64): (128, 128), (256, 256): (256, 256), (200, 300): (256, 320),
        (480, 640): (512, 640), (640, 480): (512, 640), (720, 1280): (512, 640),
    }.items():  # fmt: skip
        assert images.smallest_canvas(*size) == canvas


def test_no_shift_and_no_turn_is_the_centre_crop():
    image = noise(SIDE, SIDE)
    margin = (1 - images.CROP) / 2 * SIDE
    box = (margin, margin, SIDE - margin, SIDE - margin)
    expected = np.asarray(
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), np.float32
    )
    assert np.abs(crop_and_rotate(image.astype(np.float32), 0.0, 0.0, 0.0) - expected).max() <= 1.01


@pytest.mark.parametrize(("down", "right"), [(0.9, -0.4), (-0.7, 0.9)])
def test_a_shift_moves_the_crop_down_and_right(down, right):
    """A share of 1 moves it as far as it goes: (1 - CROP) / 2 of the side."""
    image = noise(SIDE, SIDE)
    margin = (1 - images.CROP) / 2 * SIDE
    top, left = margin * (1 + down), margin * (1 + right)
    box = (left, top, left + images.CROP * SIDE, top + images.CROP * SIDE)
    expected = np.asarray(
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), np.float32
    )
    assert (
        np.abs(crop_and_rotate(image.astype(np.float32), down, right, 0.0) - expected).max() <= 1.01
    )


@pytest.mark.parametrize("turn", [1.0, -0.5])
def test_a_turn_is_anticlockwise_about_the_centre(turn):
    """PIL's rotate turns anticlockwise too.

    It interpolates a second time, hence a smooth image and two levels of tolerance.
    """
    image = smooth(SIDE)
    cropped = np.uint8(np.round(crop_and_rotate(image.astype(np.float32), 0.0, 0.0, 0.0)))
    turned = Image.fromarray(cropped).rotate(
        turn * images.ROTATION_DEGREES, Image.Resampling.BILINEAR
    )
    result = np.asarray(crop_and_rotate(image.astype(np.float32), 0.0, 0.0, turn))
    inner = slice(6, -6)  # beyond lies what PIL has cut off, and we have not
    assert np.abs(result - np.asarray(turned, np.float32))[inner, inner].max() <= 2
    assert np.abs(result - cropped)[inner, inner].max() > 10


def test_crop_shift_and_turn_are_one_affine_map():
    """SciPy's map agrees on noise, where a misplaced pixel shows; black comes in from outside."""
    image = noise(SIDE, SIDE).astype(np.float32)
    down, right, turn = 1.0, -1.0, 1.0
    angle, centre = np.deg2rad(turn * images.ROTATION_DEGREES), np.full(2, (SIDE - 1) / 2)
    matrix = images.CROP * np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )
    offset = centre - matrix @ centre + (1 - images.CROP) / 2 * SIDE * np.array([down, right])
    expected = [
        ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="grid-constant")
        for c in range(3)
    ]
    result = np.asarray(crop_and_rotate(image, down, right, turn))
    np.testing.assert_allclose(result, np.stack(expected, axis=-1), atol=0.05)
    assert np.any(np.all(result == 0, axis=-1))


@pytest.mark.parametrize(
    "shares",
    [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (0.7, -0.6, 0.9)],
)
def test_recolouring_is_pils_brightness_then_contrast_then_saturation(shares):
    """PIL cuts fractions off after each of them, so four levels of difference are allowed."""
    image = smooth(SIDE)
    expected = Image.fromarray(image)
    limits = (images.BRIGHTNESS, images.CONTRAST, images.SATURATION)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, limit, share in zip(enhancers, limits, shares, strict=True):
        expected = enhance(expected).enhance(1 + limit * share)
    result = np.asarray(images.recolour(image.astype(np.float32), *shares))
    assert np.abs(result - np.asarray(expected, np.float32)).max() <= 4
    assert result.min() >= 0
    assert result.max() <= 255
    assert np.abs(result - image).max() > 10


def test_neutral_recolouring_changes_nothing():
    image = noise(SIDE, SIDE).astype(np.float32)
    np.testing.assert_allclose(images.recolour(image, 0.0, 0.0, 0.0), image, atol=1e-3)


def test_augmentation_is_a_function_of_the_key():
    image = noise(SIDE, SIDE).astype(np.float32)
    first, again, other = (
        augment(jax.random.key(seed), image, geometric=True) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10
    assert first.shape == image.shape
    assert jnp.min(first) >= 0
    assert jnp.max(first) <= 255


def test_without_geometry_every_pixel_stays_in_place():
    """A pixel's new colour depends on its old colour alone.

    So the edge between two colours stays where it was.
    """
    image = np.full((SIDE, SIDE, 3), (200, 80, 60), np.float32)
    image[:, 20:] = (60, 90, 180)
    still, moved = (
        np.asarray(augment(jax.random.key(0), image, geometric=geometric))
        for geometric in (False, True)
    )
    for half in (still[:, :20], still[:, 20:]):
        np.testing.assert_array_equal(half, np.broadcast_to(half[0, 0], half.shape))
    assert np.abs(still - image).max() > 1
    assert len(np.unique(moved[:, :, 0])) > 2
