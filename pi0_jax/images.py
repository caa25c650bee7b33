"""Images on the device: resize with padding and augmentation, jitted, the same for training and serving.

Axes: B images, h w canvas height and width, S the model's image side, C = 3 colours.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The canvases a host may place images on, smallest area first (height, width). Few shapes, so few compilations.
CANVASES = (
    (64, 64),
    (128, 128),
    (224, 224),
    (256, 256),
    (256, 320),
    (256, 480),
    (360, 640),
    (512, 640),
)

# Augmentation, as in the published training code (95% crop, rotation within 5 degrees, colour jitter 0.3, 0.4, 0.5).
CROP = 0.95
ROTATION_DEGREES = 5.0
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.4, 0.5
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def smallest_canvas(height: int, width: int) -> tuple[int, int]:
    """The first canvas that holds an image of this size; the largest one if none does."""
    return next((c for c in CANVASES if height <= c[0] and width <= c[1]), CANVASES[-1])


def _resize_weights(size: jax.Array, scaled: jax.Array, *, canvas: int, side: int) -> jax.Array:
    """float32[B, side, canvas]: row o mixes the canvas pixels that make output pixel o, along one axis.

    `size` of the canvas pixels are image and become `scaled` output pixels in the middle. A triangle filter, widened by the reduction
    factor (antialiased bilinear, as PIL's and jax.image.resize's). Rows of padding are zero.
    """
    size, scaled = (
        size.astype(jnp.float32)[:, None, None],
        scaled.astype(jnp.float32)[:, None, None],
    )
    factor = size / scaled
    start = jnp.floor((side - scaled) / 2)
    out = jnp.arange(side, dtype=jnp.float32)[None, :, None] - start
    pixel = jnp.arange(canvas, dtype=jnp.float32)[None, None, :]
    distance = jnp.abs(pixel - ((out + 0.5) * factor - 0.5)) / jnp.maximum(factor, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance) * (pixel < size)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
    return weights * ((out >= 0) & (out < scaled))


def resize_with_pad(images: jax.Array, sizes: jax.Array, side: int) -> jax.Array:
    """Fits each image into a square, keeping its aspect ratio, black around it.

    Args:
        images: uint8[B, h, w, 3], each image in the upper left corner of its canvas.
        sizes: int32[B, 2], height and width of each image.
        side: S.

    Returns:
        float32[B, S, S, 3] in [0, 255], not rounded to whole numbers. An image of S x S comes back unchanged.
    """
    ratio = jnp.max(sizes, axis=1) / side  # source pixels per output pixel
    scaled = jnp.maximum(jnp.floor(sizes / ratio[:, None] + 1e-4), 1.0)  # [B, 2]
    # [B, S, h]
    rows = _resize_weights(sizes[:, 0], scaled[:, 0], canvas=images.shape[1], side=side)
    # [B, S, w]
    columns = _resize_weights(sizes[:, 1], scaled[:, 1], canvas=images.shape[2], side=side)
    x = images.astype(jnp.float32)
    # Full precision: the default on TPU and TF32 GPUs would round pixels.
    x = jnp.einsum("Bsh,BhwC->BswC", rows, x, precision="highest")
    return jnp.einsum("Btw,BswC->BstC", columns, x, precision="highest")


def to_unit_range(pixels: jax.Array) -> jax.Array:
    """[0, 255] -> [-1, 1]."""
    return pixels / 127.5 - 1.0


def augment(key: jax.Array, image: jax.Array, *, geometric: bool) -> jax.Array:
    """Randomly crops, rotates and recolours one float32[S, S, 3] in [0, 255]; `geometric` False (wrist cameras) recolours only."""
    geometry_key, colour_key = jax.random.split(key)
    if geometric:
        image = crop_and_rotate(
            image, *jax.random.uniform(geometry_key, (3,), minval=-1.0, maxval=1.0)
        )
    return recolour(image, *jax.random.uniform(colour_key, (3,), minval=-1.0, maxval=1.0))


def crop_and_rotate(
    image: jax.Array, down: jax.Array, right: jax.Array, turn: jax.Array
) -> jax.Array:
    """Crops CROP of the side, moved by (down, right), rotated by turn, scaled back to float32[S, S, 3]; bilinear, black outside.

    Args:
        down, right, turn: float32 in [-1, 1], shares of the greatest possible shift and of ROTATION_DEGREES (anticlockwise).
    """
    side = image.shape[0]
    centre = (side - 1) / 2
    shift = (1.0 - CROP) * side / 2
    angle = turn * jnp.deg2rad(ROTATION_DEGREES)
    y, x = jnp.meshgrid(jnp.arange(side) - centre, jnp.arange(side) - centre, indexing="ij")
    source_y = CROP * (jnp.cos(angle) * y + jnp.sin(angle) * x) + centre + down * shift
    source_x = CROP * (-jnp.sin(angle) * y + jnp.cos(angle) * x) + centre + right * shift
    sample = jax.vmap(
        lambda c: jax.scipy.ndimage.map_coordinates(c, [source_y, source_x], order=1, cval=0.0),
        in_axes=2,
        out_axes=2,
    )
    return sample(image)


def recolour(
    image: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array
) -> jax.Array:
    """Scales brightness, then contrast about the mean luma, then saturation; clipped to [0, 255] after each, as PIL's ImageEnhance does.

    Args:
        brightness, contrast, saturation: float32 in [-1, 1], shares of BRIGHTNESS, CONTRAST and SATURATION around a factor of 1.
    """
    image = jnp.clip(image * (1.0 + BRIGHTNESS * brightness), 0.0, 255.0)
    mean = jnp.mean(_luma(image))
    image = jnp.clip(mean + (image - mean) * (1.0 + CONTRAST * contrast), 0.0, 255.0)
    luma = _luma(image)
    return jnp.clip(luma + (image - luma) * (1.0 + SATURATION * saturation), 0.0, 255.0)


def _luma(image: jax.Array) -> jax.Array:
    """float32[S, S, 3] -> float32[S, S, 1]; a sum, since accelerators would round the operands of a matrix product."""
    return jnp.sum(image * LUMA, axis=-1, keepdims=True)
