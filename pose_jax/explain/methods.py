"""Every method that explains a joint by a map over pixels, in one table.

As functions of one picture they share
`method(apply, variables, image, score, *, key=None, ...) -> [k, h, w]`; `explain_maps` calls one
by name, with the score that `bound_score` makes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax import answers
from pose_jax.arrays import Array, PyTree
from pose_jax.explain import attention, grad_cam, gradients, occlusion, scores
from pose_jax.explain.attention import Apply, Score
from pose_jax.explain.scores import Reference
from pose_jax.heatmaps import Codec

NEEDS = ("gradients", "forward", "tap", "key", "attention")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to explain a joint by a map.

    Attributes:
      function: see the module text.
      needs: names of `NEEDS`: `gradients` or `forward` passes alone; a `tap`; a `key`; a
        network with `attention`.
      text: one line. source: the paper.
      start: the option that holds what a removed pixel shows, where there is one.
    """

    function: Callable[..., Any]
    needs: tuple[str, ...]
    text: str
    source: str
    start: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its keyword arguments but `key`."""
        found = inspect.signature(self.function).parameters.values()
        return tuple(
            p.name for p in found if p.kind is p.KEYWORD_ONLY and p.name != "key"
        )


def _attend(kind: str) -> Callable[..., Any]:
    """A kind of `attention.make_explainer` in the form of the other methods."""

    def explain(
        apply: Apply,
        variables: PyTree,
        image: Float[Array, "h w 3"],
        score: Score,
        *,
        key: Any = None,
        codec: Codec,
        layer: int = -1,
        head: int | None = None,
        chunk: int = 0,
    ) -> Float[Array, "k h w"]:
        found = attention.make_explainer(
            kind, getattr(apply, "__self__", apply), codec,
            (image.shape[0], image.shape[1]), layer=layer, head=head, at_once=chunk,
        )  # fmt: skip
        return found(apply, variables, image, score, key=key)

    return explain


_GRADIENTS, _FORWARD = ("gradients",), ("forward",)
METHODS: dict[str, Method] = {
    "saliency": Method(
        gradients.saliency, _GRADIENTS, "largest absolute gradient of the channels",
        "Simonyan, Vedaldi, Zisserman, 2014",
    ),
    "gradient": Method(
        gradients.gradient, _GRADIENTS, "signed gradient, summed over channels", ""
    ),
    "gradient_x_input": Method(
        gradients.gradient_x_input, _GRADIENTS, "gradient times pixel",
        "Shrikumar et al., 2016",
    ),
    "smooth_grad": Method(
        gradients.smooth_grad, ("gradients", "key"), "mean gradient of noisy pictures",
        "Smilkov et al., 2017",
    ),
    "integrated_gradients": Method(
        gradients.integrated_gradients, _GRADIENTS,
        "gradients on the way from the removed picture, complete",
        "Sundararajan, Taly, Yan, ICML 2017", "baseline",
    ),
    "blur_integrated_gradients": Method(
        gradients.blur_integrated_gradients, _GRADIENTS,
        "gradients on the way from the blurred picture, complete",
        "following PoseIG, CVPR 2023; Xu et al., CVPR 2020",
    ),
    "deconvnet": Method(
        gradients.deconvnet, _GRADIENTS, "backward pass that cuts negative signals",
        "Zeiler, Fergus, ECCV 2014",
    ),
    "guided_backprop": Method(
        gradients.guided_backprop, _GRADIENTS,
        "gradient that also cuts negative signals", "Springenberg et al., 2015",
    ),
    "grad_cam": Method(
        grad_cam.grad_cam, ("gradients", "tap"), "channels by their mean gradient",
        "Selvaraju et al., ICCV 2017",
    ),
    "hires_cam": Method(
        grad_cam.hires_cam, ("gradients", "tap"), "channels times their gradient",
        "Draelos, Carin, 2020",
    ),
    "occlusion": Method(
        occlusion.occlusion, _FORWARD, "loss of the score with a square hidden",
        "Zeiler, Fergus, ECCV 2014", "fill",
    ),
    "rise": Method(
        occlusion.rise, ("forward", "key"), "scores of randomly masked pictures",
        "Petsiuk, Das, Saenko, BMVC 2018", "fill",
    ),
    "attention": Method(
        _attend("dependency"), ("forward", "attention"),
        "what the joint's token reads in one layer", "Yang et al. (TransPose), ICCV 2021",
    ),
    "attention_rollout": Method(
        _attend("rollout"), ("forward", "attention"),
        "attention multiplied over layers", "Abnar, Zuidema, ACL 2020",
    ),
    "gradient_x_attention": Method(
        _attend("gradient"), ("gradients", "attention"),
        "gradient times attention over layers", "Chefer, Gur, Wolf, ICCV 2021",
    ),
}  # fmt: skip


def bound_score(
    name: str, reference: Reference, codec: Codec, image_size: tuple[int, int]
) -> Score:
    """`score(outputs) -> [k]` of `scores.SCORES` with its reference fixed: no gradient goes
    through the place where the joint was found.

    Args:
      image_size: (height, width) of the crop.

    Raises:
      ValueError: an unknown score, or one that is no number per joint.
    """
    check_number(name)
    score = scores.make_score(name, codec)
    fixed = jax.tree.map(jax.lax.stop_gradient, reference)
    return lambda outputs: score(answers.maps(outputs, codec, image_size)[0], fixed)


def check_number(score: str) -> None:
    """Raises:
    ValueError: a score that is a map.
    """
    if score == "heatmap":
        numbers = [name for name in scores.SCORES if name != "heatmap"]
        raise ValueError(
            f"score 'heatmap' is a map, not one number per joint; use {', '.join(numbers)}"
        )


def applicable(module: nn.Module) -> tuple[str, ...]:
    """Names of the methods that a network allows."""
    attends = hasattr(module, "token_grid")
    return tuple(n for n, m in METHODS.items() if attends or "attention" not in m.needs)


def check_method(name: str, module: Any = None) -> Method:
    """The method of a name.

    Raises:
      ValueError: no method has the name, or it does not apply to the network.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; use one of {', '.join(METHODS)}")
    if module is not None and name not in applicable(module):
        raise ValueError(
            f"method {name!r} needs attention, which {type(module).__name__} does not "
            f"compute; use one of {', '.join(applicable(module))}"
        )
    return METHODS[name]


def explain_maps(
    method: str,
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    **options: Any,
) -> Float[Array, "k h w"]:
    """The map of every joint of one picture.

    Args:
      method: a name of `METHODS`.
      apply: `module.apply`; `image`: normalised pixels; `score`: see `bound_score`.
      key: of methods that draw. options: the method's own.

    Raises:
      ValueError: an unknown method or option, a missing key.
    """
    found = check_method(method, getattr(apply, "__self__", None))
    check_options(method, options)
    if "key" in found.needs and key is None:
        raise ValueError(f"{method} draws; give key=jax.random.key(0)")
    maps = found.function(apply, variables, image, score, key=key, **options)
    return maps.astype(jnp.float32)


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises:
    ValueError: names an option that the method does not have.
    """
    known = METHODS[method].options
    for name in options:
        if name not in known:
            raise ValueError(
                f"{method} has no option {name!r}; it has {', '.join(known)}"
            )
