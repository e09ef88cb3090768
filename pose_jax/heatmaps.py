"""Encode keypoints as heatmaps and decode heatmaps to keypoints, in crop pixels.

Everything is written for one example (`[k, 2]` <-> `[y, x, k]`) and batched with `vmap`.

| codec field | values |
|---|---|
| `encode` | `unbiased` sub-pixel Gaussian, peak 1; `msra` centre rounded, cut at 3 sigma; `thesis` whole crop pixels, unit mass, sigma .5 visible / 1 occluded; `udp` sub-pixel on unit-interval coordinates |
| `decode` | `argmax`; `quarter` (Newell et al. 2016: a quarter pixel towards the larger neighbour); `msra` (the same as HRNet's code and mmpose have it: not in the first two rows and columns); `dark` (Zhang et al. 2020: Newton step on the log map); `udp` (Huang et al. 2020); `post_dark_udp` (the same as ViTPose's and mmpose's code have it, for their weights: mirrored borders, a one-sided cross derivative, a step of any length); `soft_argmax` |
| `flip` | `aligned` moves the mirrored map by the exact offset; `shift` by one whole pixel (HRNet's convention); `none` |
| `activation` | `none`: maps are used as they are; `softmax`: maps are logits, read as a probability over positions, scaled so that a perfect map peaks at 1 |
"""  # noqa: E501

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pose_jax.arrays import Array

ENCODERS = ("unbiased", "msra", "thesis", "udp")
DECODERS = ("argmax", "quarter", "msra", "dark", "udp", "post_dark_udp", "soft_argmax")
FLIPS = ("aligned", "shift", "none")
ACTIVATIONS = ("none", "softmax")


@dataclasses.dataclass(frozen=True)
class Codec:
    """How keypoints become heatmaps and come back.

    Attributes:
      encode, decode, flip, activation: see the table of this module.
      sigma_px: standard deviation of the target in heatmap pixels.
      blur_taps: width of the Gaussian that smooths a map before the sub-pixel step of
        `dark` and `udp` (11 for sigma 2 and 17 for sigma 3 in the literature; 0 = none).
    """

    encode: str = "udp"
    decode: str = "udp"
    sigma_px: float = 2.0
    flip: str = "aligned"
    activation: str = "none"
    blur_taps: int = 0

    def __post_init__(self):
        for field, known in (
            ("encode", ENCODERS),
            ("decode", DECODERS),
            ("flip", FLIPS),
            ("activation", ACTIVATIONS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"codec.{field} is {value!r}; choose one of {', '.join(known)}"
                )
        if self.sigma_px <= 0:
            raise ValueError(f"codec.sigma_px must be positive, not {self.sigma_px}")
        if self.blur_taps and self.blur_taps % 2 == 0:
            raise ValueError(f"codec.blur_taps must be odd or 0, not {self.blur_taps}")
        if (self.encode == "udp") != (self.decode in ("udp", "post_dark_udp")):
            raise ValueError(
                f"codec.encode={self.encode!r} with codec.decode={self.decode!r} would be "
                "off by up to half a heatmap pixel; use 'udp' for both or for neither"
            )

    @property
    def unit(self) -> bool:
        """Whether coordinates count unit intervals (UDP) instead of pixels."""
        return self.encode == "udp"


def stride(
    codec: Codec, image_size: tuple[int, int], map_size: tuple[int, int]
) -> np.ndarray:
    """(x, y) crop pixels per heatmap pixel."""
    image = np.array(image_size[::-1], float)
    heatmap = np.array(map_size[::-1], float)
    return (image - 1) / (heatmap - 1) if codec.unit else image / heatmap


# --- encode -----------------------------------------------------------------------------


def render(
    keypoints: Float[Array, "k 2"],
    visible: Int[Array, "k"],
    codec: Codec,
    image_size: tuple[int, int],
    map_size: tuple[int, int],
) -> Float[Array, "y x k"]:
    """Target heatmaps of one example. Keypoints with `visible == 0` give empty maps.

    Args:
      keypoints: (x, y) crop pixels; `thesis` cuts their fractions off, as the thesis's
        stored crops did.
      visible: 0 not labelled, 1 occluded, 2 visible.
      codec: see `Codec`.
      image_size, map_size: (height, width) of crop and heatmap.
    """
    scale = stride(codec, image_size, map_size)
    if codec.encode == "thesis":
        keypoints = jnp.floor(keypoints)
    centre = keypoints / jnp.asarray(scale, keypoints.dtype)
    height, width = map_size
    if codec.encode == "thesis":
        return _render_thesis(centre, visible, map_size)
    if codec.encode == "msra":
        centre = jnp.floor(centre + 0.5)
    x = jnp.arange(width, dtype=centre.dtype)[:, None] - centre[:, 0]
    y = jnp.arange(height, dtype=centre.dtype)[:, None] - centre[:, 1]
    along_x = jnp.exp(-(x**2) / (2 * codec.sigma_px**2))
    along_y = jnp.exp(-(y**2) / (2 * codec.sigma_px**2))
    if codec.encode == "msra":
        radius = 3 * codec.sigma_px
        along_x = jnp.where(jnp.abs(x) <= radius, along_x, 0)
        along_y = jnp.where(jnp.abs(y) <= radius, along_y, 0)
    labelled = (visible > 0).astype(centre.dtype)
    return along_y[:, None, :] * along_x[None, :, :] * labelled


def _render_thesis(centre, visible, map_size):
    """A 1 at the rounded cell, then a unit-mass Gaussian blur (radius 4 sigma, edge mode
    "nearest"), sigma 0.5 for visible and 1 for occluded joints."""
    height, width = map_size
    sigma = jnp.where(visible == 2, 0.5, 1.0).astype(centre.dtype)

    def along(position, length):
        # numpy's round half to even, like the original; floor where it leaves the map.
        cell = jnp.round(position)
        cell = jnp.where(cell >= length, jnp.floor(position), cell)
        cell = jnp.clip(cell, 0, length - 1)
        offset = jnp.arange(-4, 5)
        kernel = jnp.exp(-(offset[:, None] ** 2) / (2 * sigma**2))
        kernel = jnp.where(jnp.abs(offset)[:, None] <= 4 * sigma, kernel, 0)
        kernel = kernel / kernel.sum(0)
        # Output pixel p reads input pixel clip(p + offset): repeated edges keep the mass.
        reads = jnp.clip(jnp.arange(length)[:, None] + offset, 0, length - 1)
        return jnp.einsum("pok,ok->pk", reads[:, :, None] == cell, kernel)

    inside = jnp.all(
        (jnp.floor(centre) >= 0) & (jnp.floor(centre) < jnp.array([width, height])),
        axis=-1,
    )
    drawn = ((visible > 0) & inside).astype(centre.dtype)
    along_y, along_x = along(centre[:, 1], height), along(centre[:, 0], width)
    return along_y[:, None, :] * along_x[None, :, :] * drawn


# --- decode -----------------------------------------------------------------------------


def activate(maps: Float[Array, "*b y x k"], codec: Codec) -> Float[Array, "*b y x k"]:
    """Raw model maps -> heatmaps in float32, as `codec.activation` says."""
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    if codec.activation == "none":
        return maps
    *lead, height, width, keypoints = maps.shape
    flat = maps.reshape(*lead, height * width, keypoints)
    probability = jax.nn.softmax(flat, axis=-2) * (2 * np.pi * codec.sigma_px**2)
    return probability.reshape(maps.shape)


def decode(
    heatmaps: Float[Array, "y x k"], codec: Codec, image_size: tuple[int, int]
) -> tuple[Float[Array, "k 2"], Float[Array, "k"]]:
    """Keypoints (x, y) in crop pixels and their scores (peak heights, clipped to 0..1)."""
    map_size = heatmaps.shape[0], heatmaps.shape[1]
    position = locate(heatmaps, codec)
    scale = jnp.asarray(stride(codec, image_size, map_size), position.dtype)
    return position * scale, jnp.clip(heatmaps.max((0, 1)), 0, 1)


def locate(heatmaps: Float[Array, "y x k"], codec: Codec) -> Float[Array, "k 2"]:
    """Keypoints (x, y) in heatmap pixels."""
    if codec.decode == "soft_argmax":
        return _soft_argmax(heatmaps)
    peak = argmax(heatmaps)
    if codec.decode == "argmax":
        return peak.astype(heatmaps.dtype)
    if codec.decode in ("quarter", "msra"):
        return _quarter(heatmaps, peak, first=2 if codec.decode == "msra" else 1)
    if codec.decode == "post_dark_udp":
        return _post_dark_udp(heatmaps, peak, codec.blur_taps)
    smooth = _modulate(heatmaps, codec.blur_taps)
    if codec.decode == "dark":
        return _newton(jnp.log(jnp.maximum(smooth, 1e-10)), peak, step=2)
    return _newton(jnp.log(jnp.clip(smooth, 1e-3, 50)), peak, step=1)


def argmax(heatmaps: Float[Array, "y x k"]) -> Int[Array, "k 2"]:
    """(x, y) of the largest pixel of every map (the first one on ties)."""
    height, width, keypoints = heatmaps.shape
    index = heatmaps.reshape(height * width, keypoints).argmax(0)
    return jnp.stack([index % width, index // width], axis=-1)


def _at(maps, x, y):
    """Value of every map at its own pixel; coordinates are clipped (padded edge)."""
    height, width, keypoints = maps.shape
    x, y = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
    return maps[y, x, jnp.arange(keypoints)]


def _quarter(maps, peak, *, first: int):
    """`first`: the first row and column in which peaks are moved."""
    x, y = peak[:, 0], peak[:, 1]
    height, width = maps.shape[:2]
    inside = (x >= first) & (x < width - 1) & (y >= first) & (y < height - 1)
    slope = jnp.stack(
        [_at(maps, x + 1, y) - _at(maps, x - 1, y),
         _at(maps, x, y + 1) - _at(maps, x, y - 1)],
        axis=-1,
    )  # fmt: skip
    return peak + 0.25 * jnp.sign(slope) * inside[:, None]


def _blur(maps, taps: int, mode: str):
    """Gaussian blur over `taps` pixels; `mode` as in `numpy.pad` says what lies outside."""
    # OpenCV's rule for the sigma of a kernel of given width, which the papers' code uses.
    sigma = 0.3 * ((taps - 1) * 0.5 - 1) + 0.8
    offset = np.arange(taps) - taps // 2
    kernel = np.exp(-(offset**2) / (2 * sigma**2))
    kernel = jnp.asarray(kernel / kernel.sum(), maps.dtype)

    def line(values):
        wide = jnp.pad(values, taps // 2, mode=mode)
        return jnp.convolve(wide, kernel, mode="valid")

    blur = jax.vmap(line)
    rows = jnp.moveaxis(maps, 2, 0)
    out = jax.vmap(blur)(jnp.swapaxes(jax.vmap(blur)(rows), 1, 2))
    return jnp.transpose(out, (2, 1, 0))


def _post_dark_udp(maps, peak, taps: int):
    """ViTPose's refinement: blurred with mirrored borders, log of 1e-3 to 50, one Newton step
    with the cross derivative of two corners and no bound."""
    smooth = _blur(maps, taps, "reflect") if taps else maps
    log_maps = jnp.log(jnp.clip(smooth, 1e-3, 50))
    x, y = peak[:, 0], peak[:, 1]

    def at(dx, dy):
        return _at(log_maps, x + dx, y + dy)

    middle = at(0, 0)
    east, west, south, north = at(1, 0), at(-1, 0), at(0, 1), at(0, -1)
    slope = jnp.stack([east - west, south - north], -1) / 2
    corners = at(1, 1) + at(-1, -1)
    twist = 0.5 * (corners - east - south + 2 * middle - west - north)
    tiny = jnp.finfo(jnp.float32).eps
    curve_x = east - 2 * middle + west + tiny
    curve_y = south - 2 * middle + north + tiny
    determinant = curve_x * curve_y - twist**2
    safe = jnp.where(determinant == 0, 1, determinant)
    move_x = (curve_y * slope[:, 0] - twist * slope[:, 1]) / safe
    move_y = (curve_x * slope[:, 1] - twist * slope[:, 0]) / safe
    return peak - jnp.stack([move_x, move_y], -1)


def _modulate(maps, taps: int):
    """Gaussian blur, zero-padded, rescaled to the old maximum (Zhang et al. 2020)."""
    if not taps:
        return maps
    out = _blur(maps, taps, "constant")
    peak, old = out.max((0, 1)), maps.max((0, 1))
    return out * (old / jnp.where(peak > 0, peak, 1))


def _newton(log_maps, peak, step: int):
    """One Newton step -Hessian^-1 gradient from the peak, at most one pixel far.

    `step=2`: DARK's second derivatives over two pixels, skipped near the border.
    `step=1`: UDP's unit-step differences with a padded edge.
    """
    x, y = peak[:, 0], peak[:, 1]
    height, width = log_maps.shape[:2]

    def at(dx, dy):
        return _at(log_maps, x + dx, y + dy)

    middle = at(0, 0)
    slope_x = (at(1, 0) - at(-1, 0)) / 2
    slope_y = (at(0, 1) - at(0, -1)) / 2
    curve_x = (at(step, 0) - 2 * middle + at(-step, 0)) / step**2
    curve_y = (at(0, step) - 2 * middle + at(0, -step)) / step**2
    twist = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = curve_x * curve_y - twist**2
    usable = (determinant > 1e-12) & (curve_x < 0)
    if step == 2:
        usable &= (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    safe = jnp.where(usable, determinant, 1)
    move_x = -(curve_y * slope_x - twist * slope_y) / safe
    move_y = -(curve_x * slope_y - twist * slope_x) / safe
    move = jnp.stack([move_x, move_y], axis=-1)
    usable &= jnp.abs(move).max(-1) <= 1.0
    return peak + jnp.where(usable[:, None], move, 0)


def _soft_argmax(maps):
    """Centre of the normalised mass (negative values count as zero)."""
    mass = jnp.maximum(maps, 0)
    total = jnp.maximum(mass.sum((0, 1)), jnp.finfo(maps.dtype).tiny)
    x = jnp.arange(maps.shape[1], dtype=maps.dtype)
    y = jnp.arange(maps.shape[0], dtype=maps.dtype)
    return jnp.stack(
        [jnp.einsum("yxk,x->k", mass, x) / total,
         jnp.einsum("yxk,y->k", mass, y) / total],
        axis=-1,
    )  # fmt: skip


# --- flip test --------------------------------------------------------------------------


def unflip(
    heatmaps: Float[Array, "*b y x k"],
    mirrored: np.ndarray,
    codec: Codec,
    image_size: tuple[int, int],
) -> Float[Array, "*b y x k"]:
    """Heatmaps of the mirrored crop, brought back: mirror, swap pairs, align.

    On pixel-counting coordinates (`u = x / stride`) a mirrored map sits
    `(stride - 1) / stride` heatmap pixels too far left; `codec.flip` says what is done about
    it. On unit-interval coordinates (UDP) mirroring is exact and nothing moves.
    """
    maps = heatmaps[..., ::-1, :][..., mirrored]
    if codec.unit or codec.flip == "none":
        return maps
    moved = jnp.concatenate([maps[..., :1, :], maps[..., :-1, :]], axis=-2)
    if codec.flip == "shift":
        return moved
    map_size = heatmaps.shape[-3], heatmaps.shape[-2]
    pixels = float(stride(codec, image_size, map_size)[0])
    part = (pixels - 1) / pixels
    return (1 - part) * maps + part * moved
