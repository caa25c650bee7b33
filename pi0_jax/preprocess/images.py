"""Resizes images with padding, and augments them, on the device.

The functions are jitted and the same for training and serving.

Axes: B images, h w canvas height and width, S the model's image side, C = 3 colours.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The canvases on which a host may place images (height, width), the smallest area first. There are
# few shapes, so there are few compilations.
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

# Augmentation is as in the published training code: a crop of 95%, rotation within 5 degrees, and
# colour jitter of 0.3, 0.4 and 0.5.
CROP = 0.95
ROTATION_DEGREES = 5.0
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.4, 0.5
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def smallest_canvas(height: int, width: int) -> tuple[int, int]:
    """Returns the first canvas that holds an image of this size, or the largest if none does."""
    return next((c for c in CANVASES if height <= c[0] and width <= c[1]), CANVASES[-1])


def _resize_weights(size: jax.Array, scaled: jax.Array, *, canvas: int, side: int) -> jax.Array:
    """Returns float32[B, side, canvas]: the weights that resize images along one axis.

    Row o mixes the canvas pixels that make output pixel o. The filter is a triangle, widened by the
    reduction factor (antialiased bilinear, as in PIL and jax.image.resize). Rows of padding are
    zero.

    Args:
        size: int[B], the number of canvas pixels that are image.
        scaled: float[B], the number of output pixels in the middle that they become.
        canvas: pixels of the canvas along this axis.
        side: output pixels along this axis.
    """
    size, scaled = (
        size.astype(jnp.float32)[:, None, None],
        scaled.astype(jnp.float32)[:, None, None],
    )
    factor = size / scaled
    start = jnp.floor((side - scaled) / 2)
    # Pixel i covers [i, i + 1), so its centre is i + 0.5. The centres of output and canvas pixels
    # are compared in canvas pixels.
    out = jnp.arange(side, dtype=jnp.float32)[None, :, None] - start
    pixel = jnp.arange(canvas, dtype=jnp.float32)[None, None, :]
    distance = jnp.abs(pixel - ((out + 0.5) * factor - 0.5)) / jnp.maximum(factor, 1.0)
    weights = jnp.maximum(0.0, 1.0 - distance) * (pixel < size)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
    return weights * ((out >= 0) & (out < scaled))


def resize_with_pad(images: jax.Array, sizes: jax.Array, side: int) -> jax.Array:
    """Fits each image into a square. It keeps the aspect ratio and pads with black.

    Args:
        images: uint8[B, h, w, 3], each image in the upper left corner of its canvas.
        sizes: int32[B, 2], height and width of each image.
        side: S.

    Returns:
        float32[B, S, S, 3] in [0, 255], not rounded to whole numbers. An image of S x S comes back
        unchanged.
    """
    ratio = jnp.max(sizes, axis=1) / side  # source pixels per output pixel
    scaled = jnp.maximum(jnp.floor(sizes / ratio[:, None] + 1e-4), 1.0)  # [B, 2]
    # [B, S, h]
    rows = _resize_weights(sizes[:, 0], scaled[:, 0], canvas=images.shape[1], side=side)
    # [B, S, w]
    columns = _resize_weights(sizes[:, 1], scaled[:, 1], canvas=images.shape[2], side=side)
    x = images.astype(jnp.float32)
    # The precision is full, because the default on TPUs and TF32 GPUs would round pixels.
    x = jnp.einsum("Bsh,BhwC->BswC", rows, x, precision="highest")
    return jnp.einsum("Btw,BswC->BstC", columns, x, precision="highest")


def to_unit_range(pixels: jax.Array) -> jax.Array:
    """Maps pixels from [0, 255] to [-1, 1]."""
    return pixels / 127.5 - 1.0


def augment(key: jax.Array, image: jax.Array, *, geometric: bool) -> jax.Array:
    """Crops, rotates and recolours one image at random.

    Args:
        key: decides all random numbers.
        image: float32[S, S, 3] in [0, 255].
        geometric: whether to crop and rotate. It is False for wrist cameras, which are recoloured
            only.

    Returns:
        float32[S, S, 3] in [0, 255].
    """
    geometry_key, colour_key = jax.random.split(key)
    if geometric:
        image = crop_and_rotate(
            image, *jax.random.uniform(geometry_key, (3,), minval=-1.0, maxval=1.0)
        )
    return recolour(image, *jax.random.uniform(colour_key, (3,), minval=-1.0, maxval=1.0))


def crop_and_rotate(
    image: jax.Array, down: jax.Array, right: jax.Array, turn: jax.Array
) -> jax.Array:
    """Crops an image to CROP of its side, rotates it, and scales it back to its size.

    The sampling is bilinear, and places outside of the image are black.

    Args:
        image: float32[S, S, 3].
        down, right: float32 in [-1, 1], shares of the greatest possible shift of the crop.
        turn: float32 in [-1, 1], a share of ROTATION_DEGREES, anticlockwise.

    Returns:
        float32[S, S, 3].
    """
    side = image.shape[0]
    centre = (side - 1) / 2
    shift = (1.0 - CROP) * side / 2
    angle = turn * jnp.deg2rad(ROTATION_DEGREES)
    # For each output pixel, about the centre, the place in the source that it shows.
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
    """Scales brightness, then contrast about the mean luma, then saturation.

    The result is clipped to [0, 255] after each, as PIL's ImageEnhance does.

    Args:
        image: float32[S, S, 3] in [0, 255].
        brightness, contrast, saturation: float32 in [-1, 1], shares of BRIGHTNESS, CONTRAST and
            SATURATION around a factor of 1.

    Returns:
        float32[S, S, 3] in [0, 255].
    """
    image = jnp.clip(image * (1.0 + BRIGHTNESS * brightness), 0.0, 255.0)
    mean = jnp.mean(_luma(image))
    image = jnp.clip(mean + (image - mean) * (1.0 + CONTRAST * contrast), 0.0, 255.0)
    luma = _luma(image)
    return jnp.clip(luma + (image - luma) * (1.0 + SATURATION * saturation), 0.0, 255.0)


def _luma(image: jax.Array) -> jax.Array:
    """Returns the luma float32[S, S, 1] of an image float32[S, S, 3].

    It is a sum, since accelerators would round the operands of a matrix product.
    """
    return jnp.sum(image * LUMA, axis=-1, keepdims=True)
