"""Grad-CAM and HiRes-CAM at any tap of a network.

With A the tap's channels and G_k = dS_k/dA the gradient of a joint's score:

| method | map | source |
|---|---|---|
| `grad_cam` | sum over c of mean(G_kc) A_c | Selvaraju et al., ICCV 2017, eq. 1 and 2 |
| `hires_cam` | sum over c of G_kc A_c | Draelos, Carin, 2020 |

Grad-CAM averages the gradient over space: it forgets where the joint was asked for, so equal
features far away light up; HiRes-CAM does not. Its sum is score - bias where the rest of the
network is linear. Before a last 1x1 convolution the gradient of one map pixel is one pixel
high, its mean the convolution's own weights: the map is then the joint's heatmap, an
explanation of nothing (`repeats_heatmap`). With a softmax over positions the mean vanishes
there.

A tap is a map `[b, y, x, c]`, a map of every stage `[b, s, y, x, c]` (stages count as
channels), or tokens `[b, n, d]` that lie on a grid; keypoint tokens are left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from pose_jax.arrays import Array, PyTree
from pose_jax.explain.attention import Apply, Score, Tokens, tokens_of
from pose_jax.explain.gradients import joint_gradients
from pose_jax.models.outputs import Edit, Outputs

FEWEST_CELLS = 16
"""Of a tap that is chosen by default: a map of one cell says nothing."""


def grad_cam(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    tap: str | None = None,
    positive: bool = False,
    tokens: Tokens | None = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """Channels weighted by their mean gradient, upsampled bilinearly; signed.

    Args:
      tap: a name of `taps_of`; None: `default_tap`.
      positive: cut negative values off before upsampling, as published.
      tokens: where tokens lie; by default asked of the module that `apply` belongs to.
      chunk: joints whose backward passes run side by side; 0: all.

    Raises:
      ValueError: a tap that does not exist or is no map.
    """
    del key
    found = _read(apply, variables, image, score, tap, tokens, chunk)
    weights = found.slopes.mean((1, 2))
    maps = jnp.einsum("kc,yxc->kyx", weights, found.values, precision="highest")
    return found.finish(maps, positive)


def hires_cam(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    tap: str | None = None,
    positive: bool = False,
    tokens: Tokens | None = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """Gradient times channel, summed over channels, upsampled bilinearly; signed.

    Arguments and errors are those of `grad_cam`.
    """
    del key
    found = _read(apply, variables, image, score, tap, tokens, chunk)
    maps = jnp.einsum("kyxc,yxc->kyx", found.slopes, found.values, precision="highest")
    return found.finish(maps, positive)


def taps_of(
    apply: Apply, variables: PyTree, image: Any, *, tokens: Tokens | None = None
) -> dict[str, tuple[int, ...]]:
    """Usable taps and their shapes `[1, ...]`, in the order of the network; nothing is computed.

    Args:
      image: `[h, w, 3]`, an array or its shape and type.
    """
    shapes, stages = _look(apply, variables, image)
    places = tokens or _tokens(apply, image.shape)
    return {
        n: s.shape for n, s in shapes.items() if _layout(n, s.shape, stages, places)
    }


def default_tap(taps: dict[str, tuple[int, ...]], tokens: Tokens | None = None) -> str:
    """The last of the coarsest maps (of at least 16 cells where there are such): the bottleneck
    of an hourglass, the last stage of a ResNet, the last tokens of a transformer; where heads
    read keypoint tokens alone, those before the last layer, whose patches nobody reads.

    Raises:
      ValueError: there is none.
    """
    if not taps:
        raise ValueError("this network has no tap that is a map; use another method")
    patches = 0 if tokens is None else tokens.grid[0] * tokens.grid[1]
    cells = {n: patches if len(s) == 3 else s[-3] * s[-2] for n, s in taps.items()}
    large = {n: c for n, c in cells.items() if c >= FEWEST_CELLS} or cells
    least = min(large.values())
    found = [name for name, count in large.items() if count == least]
    if tokens is not None and tokens.keypoints:
        last = [name for name in found if name.endswith("/tokens")][-1:]
        found = [name for name in found if name not in ("tokens", *last)] or found
    return found[-1]


def repeats_heatmap(
    maps: Float[Array, "k h w"],
    heatmaps: Float[Array, "y x k"],
    *,
    least: float = 0.99,
) -> Bool[Array, "k"]:
    """Whether a joint's map merely repeats its heatmap: correlation over pixels above `least`.

    Args:
      heatmaps: of the clean picture, raw or activated as they were scored.
    """
    size = (heatmaps.shape[2], *maps.shape[1:])
    there = jax.image.resize(jnp.moveaxis(heatmaps, -1, 0), size, "bilinear")

    def centred(x):
        x = x.reshape(len(x), -1).astype(jnp.float32)
        x = x / jnp.maximum(jnp.abs(x).max(1, keepdims=True), 1e-30)
        return x - x.mean(1, keepdims=True)

    a, b = centred(maps), centred(there)
    norm = jnp.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) > least * jnp.maximum(norm, 1e-12)


class _Read:
    """Values `[y, x, c]` of a tap, their gradients `[k, y, x, c]`, and the way to pixels."""

    def __init__(self, values, slopes, layout: str, size, tokens: Tokens | None):
        self._layout, self._size, self._tokens = layout, size, tokens
        self.values = self._on_grid(values.astype(jnp.float32))
        self.slopes = self._on_grid(slopes.astype(jnp.float32))

    def _on_grid(self, x):
        """`[..., 1, tap]` -> `[..., y, x, c]`."""
        if self._layout == "map":
            return jnp.squeeze(x, -4)
        if self._layout == "stages":
            x = jnp.moveaxis(jnp.squeeze(x, -5), -4, -2)
            return x.reshape(*x.shape[:-2], -1)
        assert self._tokens is not None
        rows, columns = self._tokens.grid
        x = jnp.squeeze(x, -3)[..., -rows * columns :, :]
        return x.reshape(*x.shape[:-2], rows, columns, x.shape[-1])

    def finish(self, maps, positive: bool):
        maps = jnp.maximum(maps, 0) if positive else maps
        if self._layout == "tokens" and self._tokens is not None:
            return self._tokens.upsample(maps)
        return jax.image.resize(maps, (len(maps), *self._size), "bilinear")


def _read(apply, variables, image, score, tap, tokens, chunk) -> _Read:
    shapes, stages = _look(apply, variables, image)
    places = tokens or _tokens(apply, image.shape)
    layouts = {n: _layout(n, s.shape, stages, places) for n, s in shapes.items()}
    usable = {n: shapes[n].shape for n, layout in layouts.items() if layout}
    tap = default_tap(usable, places) if tap is None else tap
    if tap not in usable:
        raise ValueError(
            f"tap {tap!r} is no map of this network; use one of {', '.join(usable)}"
        )
    shape = shapes[tap]

    def scored(shift):
        outputs = apply(variables, image[None], edits={tap: Edit(shift=shift)})
        return score(outputs), outputs.taps[tap]

    zero = jnp.zeros(shape.shape, shape.dtype)
    _, slopes, values = joint_gradients(scored, zero, chunk=chunk, has_aux=True)
    return _Read(values, slopes, layouts[tap], image.shape[:2], places)


def _look(apply, variables, image) -> tuple[dict[str, Any], int]:
    """Shapes and types of the taps, and the number of stages."""
    names: list[str] = []

    def forward(variables, pixels):
        outputs = apply(variables, pixels)
        # Order of the network; what leaves a traced function is sorted by name.
        names.extend(outputs.taps)
        return outputs

    pixels = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    outputs: Outputs = jax.eval_shape(forward, variables, pixels)
    found = outputs.coordinates if outputs.heatmaps is None else outputs.heatmaps
    return {name: outputs.taps[name] for name in names}, found.shape[0]


def _tokens(apply: Apply, shape) -> Tokens | None:
    """Those of the module whose method `apply` is."""
    module = getattr(apply, "__self__", None)
    if not hasattr(module, "token_grid"):
        return None
    return tokens_of(module, (shape[0], shape[1]))


def _layout(name: str, shape, stages: int, tokens: Tokens | None) -> str:
    """`map`, `stages`, `tokens`, or nothing for what is no map."""
    if name.endswith("/attention"):  # [b, a, n, n]
        return ""
    if len(shape) == 4:
        return "map"
    # A cascade that cuts boxes out has an axis of joints there.
    if len(shape) == 5 and shape[1] == stages:
        return "stages"
    if len(shape) == 3 and tokens is not None:
        patches = tokens.grid[0] * tokens.grid[1]
        return "tokens" if shape[1] in (patches, tokens.count) else ""
    return ""
