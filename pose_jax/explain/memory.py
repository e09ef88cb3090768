"""How much memory the gradients of all joints take, before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from pose_jax.arrays import PyTree
from pose_jax.explain.attention import Apply, Score
from pose_jax.explain.gradients import of_image


def gradient_bytes(
    apply: Apply,
    variables: PyTree,
    image: Any,
    score: Score,
    *,
    chunk: int = 0,
    at_once: int = 1,
) -> int:
    """Bytes beside the weights that one call of a gradient method holds: what the forward pass
    keeps for `at_once` pictures, and the largest sum of signals that live at once on the way
    back, for `chunk` joints of each. Compilers join loops, so it is rather too much.

    Args:
      image: `[h, w, 3]`, an array or its shape and type.
      chunk, at_once: as the method has them; `chunk` 0: all joints.
    """
    function = of_image(apply, variables, score)

    def kept(count: int):
        pixels = jax.ShapeDtypeStruct((count, *image.shape), image.dtype)
        return jax.eval_shape(lambda x: jax.vjp(jax.vmap(function), x)[1], pixels)

    # Weights are kept once, however many pictures there are.
    residuals = _bytes(jax.tree.leaves(kept(2))) - _bytes(jax.tree.leaves(kept(1)))
    one = jax.ShapeDtypeStruct(image.shape, image.dtype)
    scores, pull = jax.eval_shape(lambda x: jax.vjp(function, x), one)
    program = jax.make_jaxpr(lambda pull, seed: pull(seed))(pull, scores)
    signals = peak_bytes(program.jaxpr)
    joints = len(scores.shape) and scores.shape[0]
    rows = min(chunk, joints) if chunk else joints
    result = joints * int(np.prod(image.shape)) * image.dtype.itemsize
    return at_once * (residuals + rows * signals + result)


def peak_bytes(jaxpr: core.Jaxpr) -> int:
    """Largest number of bytes that its intermediates hold at one time."""
    last = {}
    for place, equation in enumerate(jaxpr.eqns):
        for value in equation.invars:
            if isinstance(value, core.Var):
                last[value] = place
    for value in jaxpr.outvars:
        if isinstance(value, core.Var):
            last[value] = len(jaxpr.eqns)
    given = {*jaxpr.invars, *jaxpr.constvars}
    live = peak = 0
    for place, equation in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(sub) for sub in _within(equation)), default=0)
        live += _bytes([v.aval for v in equation.outvars])
        peak = max(peak, live + inner)
        ended = {v for v in equation.invars if isinstance(v, core.Var)} - given
        ended = {v for v in ended if last[v] == place}
        ended |= {v for v in equation.outvars if last.get(v, -1) < place}
        live -= _bytes([v.aval for v in ended])
    return peak


def _within(equation) -> list[core.Jaxpr]:
    """Programs inside of an operation: loops, branches, compiled functions."""
    found = []
    for value in jax.tree.leaves(
        equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
    ):
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found


def _bytes(values: Any) -> int:
    return sum(
        int(np.prod(v.shape)) * jnp.dtype(v.dtype).itemsize
        for v in values
        if hasattr(v, "shape") and hasattr(v, "dtype")
    )
