"""What every model returns, and how its intermediates are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp


@flax.struct.dataclass
class Edit:
    """A traced change of one tap: `x` becomes `x * scale + shift`.

    `scale` and `shift` broadcast against the tap. A closed skip gate is `Edit(scale=0.)`, a
    replaced activation is `Edit(0., new)`, an inserted code is `Edit(shift=code)`; Grad-CAM
    differentiates at `shift = 0`. Being numbers, edits vmap and never recompile.
    """

    scale: Any = 1.0
    shift: Any = 0.0


Edits = Mapping[str, Edit]


def apply_edit(x, edit: Edit | None):
    """`x * scale + shift` in the type of `x`; None changes nothing."""
    if edit is None:
        return x
    scale, shift = (jnp.asarray(part, x.dtype) for part in (edit.scale, edit.shift))
    return x * scale + shift


@flax.struct.dataclass
class Outputs:
    """Result of a model. `s` counts stacks or cascade stages; the last one counts.

    Attributes:
      heatmaps: `[s, b, y, x, k]`, or None for models that regress coordinates.
      coordinates: `[s, b, k, 2]` (x, y) crop pixels, or None.
      spread: `[s, b, k, 2]` scale of the coordinates' error, crop pixels, or None.
      taps: every named intermediate; what nobody reads costs nothing after `jit`.
    """

    heatmaps: Any = None
    coordinates: Any = None
    spread: Any = None
    taps: dict[str, Any] = flax.struct.field(default_factory=dict)


class Taps:
    """Collects named intermediates during one forward pass and applies edits to them.

    Usage inside a module: `x = taps("stack0/bottleneck", x)`. After the pass,
    `taps.finish()` returns the dict and refuses edits that named no tap.
    """

    def __init__(self, edits: Edits | None = None):
        self._edits = dict(edits or {})
        self._seen: dict[str, Any] = {}

    def __call__(self, name: str, x):
        return self.record(name, apply_edit(x, self.edit(name)))

    def edited(self, name: str) -> bool:
        """Whether this pass changes the tap; known while tracing, so code may branch on it."""
        return name in self._edits

    def edit(self, name: str) -> Edit | None:
        """The change of a tap, for a module that applies it inside and then `record`s."""
        return self._edits.get(name)

    def record(self, name: str, x):
        """Note a tap whose edit, if there is one, has been applied already."""
        self._seen[name] = x
        return x

    def finish(self) -> dict[str, Any]:
        """The taps by name.

        Raises:
          ValueError: an edit names a tap that this model does not have.
        """
        unknown = sorted(set(self._edits) - set(self._seen))
        if unknown:
            raise ValueError(
                f"edits name unknown taps {unknown}; this model has {sorted(self._seen)}"
            )
        return self._seen
