"""Activations whose backward rule can be exchanged, for deconvnet and guided backpropagation.

Networks call `rectify(x, kind)`. It is the plain activation, to the last instruction, unless
the call is traced inside of `with rule(name):`, which keeps the values and changes what comes
back through them. With g the signal from above and f' the activation's slope:

| rule | what goes down | source |
|---|---|---|
| `gradient` | f'(x) g | |
| `deconvnet` | max(g, 0), whatever x was | Zeiler, Fergus, ECCV 2014 |
| `guided` | max(f'(x), 0) max(g, 0) | Springenberg et al., ICLR 2015 workshop |

Of a ReLU f' is the gate x > 0, which makes the published rules. For the others, where nothing
is published: `deconvnet` passes what a ReLU6 cut off; `guided` stops at its upper end as well;
a leaky ReLU lets through one hundredth where x < 0; GELU weighs by its slope and stops where
it falls (x < -0.75).

A rule is not a number, so it is no argument of the network. It is a context that JAX's own
caches know: a function that was compiled outside of a rule is traced anew inside of one, and
neither program is ever taken for the other. It holds for one thread.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array

RULES = ("gradient", "deconvnet", "guided")


class _Variable:
    """A context that compiled functions do not see, where JAX has none of its own: there
    `apply` must not have been compiled before a rule is asked for."""

    def __init__(self, default: str):
        self._variable = contextvars.ContextVar("rule", default=default)

    @property
    def value(self) -> str:
        return self._variable.get()

    @contextlib.contextmanager
    def __call__(self, value: str) -> Iterator[None]:
        token = self._variable.set(value)
        try:
            yield
        finally:
            self._variable.reset(token)


_context: Any = getattr(jax, "make_user_context", _Variable)(RULES[0])


def rule(name: str) -> contextlib.AbstractContextManager[None]:
    """What is traced inside goes back by this rule.

    Raises:
      ValueError: no rule has the name.
    """
    if name not in RULES:
        raise ValueError(f"rule {name!r} is unknown; use one of {', '.join(RULES)}")
    return _context(name)


def gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x times the normal distribution function (Hendrycks, Gimpel 2016), by erf as PyTorch
    does: `jax.nn.gelu` asks for erfc, whose exponential costs a CPU more."""
    half = jnp.asarray(0.5, x.dtype)
    return half * x * (1 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


KINDS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": gelu,
    "leaky_relu": jax.nn.leaky_relu,
}


def rectify(x: Float[Array, "*b c"], kind: str = "relu") -> Any:
    """The activation of a name of `KINDS`, like `x`; a leaky ReLU's slope is 0.01."""
    chosen = _context.value
    return KINDS[kind](x) if chosen == RULES[0] else _ruled(x, kind, chosen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _ruled(x, kind: str, chosen: str):
    return KINDS[kind](x)


def _ruled_forward(x, kind: str, chosen: str):
    return KINDS[kind](x), x if chosen == "guided" else None


def _ruled_backward(kind: str, chosen: str, x, g):
    g = jnp.maximum(g, 0)
    if chosen == "guided":
        slope = jax.jvp(KINDS[kind], (x,), (jnp.ones_like(x),))[1]
        g = g * jnp.maximum(slope, 0)
    return (g,)


_ruled.defvjp(_ruled_forward, _ruled_backward)
