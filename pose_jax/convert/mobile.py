"""Published weights of the mobile networks -> variables of `models.mobile`.

Source: edvardHua/PoseEstimationForMobile, `release/*/model.tflite` (Apache-2.0). Read from
the .tflite file itself, or from its plain form: `<name>_tensors.npz` (constant number `i` as
`t<i>`) with `<name>_graph.json` beside it (tensors and operators under the schema's names).

Convolutions of the file and of the Flax module run in the same order, so the n-th one there
fills the n-th one here; kind, shape, stride and activation of each must agree.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from pose_jax import models
from pose_jax.arrays import PyTree
from pose_jax.convert import tflite
from pose_jax.convert.tflite import Graph, Operator, Tensor
from pose_jax.models.mobile_layers import Depthwise
from pose_jax.trees import flat_names

SIZE = (192, 192)
SIGMA_PX = {"mobile_hourglass": 1.5, "mobile_pose_machine": 3.0}
"""Targets of the training code: 6 pixels of the crop, in heatmap pixels."""

OTHERS = {
    "mobile_hourglass": {"ADD": 50, "MAX_POOL_2D": 4, "RESIZE_BILINEAR": 4},
    "mobile_pose_machine": {
        "ADD": 29, "CONCATENATION": 6, "MAX_POOL_2D": 2, "RESIZE_BILINEAR": 3,
    },
}  # fmt: skip
"""Operators without weights in the published networks (a RELU after RELU6 changes nothing)."""

ACTIVATION = {"CONV_2D": "RELU6", "DEPTHWISE_CONV_2D": "RELU"}


def model_section(family: str) -> dict[str, Any]:
    """The config sections that belong to the weights: skeleton, input, codec, model.

    Raises:
      ValueError: no family of this module.
    """
    if family not in SIGMA_PX:
        raise ValueError(
            f"unknown family {family!r}; choose one of {', '.join(SIGMA_PX)}"
        )
    return dict(
        skeleton="mobile",
        input=dict(
            size=SIZE,
            mean=(0.0, 0.0, 0.0),
            std=(1 / 255, 1 / 255, 1 / 255),
            channel_order="bgr",
            padding=1.15,
            area=True,
        ),
        codec=dict(
            encode="unbiased",
            decode="argmax",
            sigma_px=SIGMA_PX[family],
            flip="aligned",
            activation="none",
            blur_taps=0,
        ),
        model=dict(name=family),
    )


def load(path: str | Path) -> tuple[str, PyTree]:
    """(family, variables as numpy) of a published network.

    Args:
      path: a `.tflite` file, or `<name>_tensors.npz` with `<name>_graph.json` beside it.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: another format, or a network that is neither of the two; the first
        difference is named.
    """
    path = Path(path)
    if path.suffix == ".npz":
        graph = read_plain(path)
    elif path.suffix == ".tflite":
        graph = tflite.read(path)
    else:
        raise ValueError(f"{path}: give a .tflite file or <name>_tensors.npz")
    return variables_of(graph, str(path))


def variables_of(graph: Graph, name: str) -> tuple[str, PyTree]:
    """(family, variables) of a network that was read; `name` is for messages.

    Raises:
      ValueError: see `load`.
    """
    check_constants(graph, name)
    convolutions = [op for op in graph.operators if op.kind in ACTIVATION]
    keypoints = _keypoints(graph, name)
    problems = []
    for family in OTHERS:
        layers = layers_of(family, keypoints)
        problem = _difference(graph, convolutions, layers, OTHERS[family])
        if problem is None:
            return family, _fill(graph, convolutions, layers)
        problems.append(f"not {family}: {problem}")
    raise ValueError(f"{name} is no published mobile network ({'; '.join(problems)})")


# --- the module's side ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution of the module.

    Attributes:
      path: where its `kernel` and `bias` stand in `params`, such as `input_block0/expand`.
      kind: the operator that it corresponds to.
      shape: of the module's kernel. stride: in both directions.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    stride: int

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The kernel's shape in the file: (out, h, w, in), depthwise (1, h, w, channels)."""
        if self.kind == "DEPTHWISE_CONV_2D":
            height, width, _, channels = self.shape
            return 1, height, width, channels
        *window, inputs, outputs = self.shape
        return outputs, *(window or (1, 1)), inputs


@functools.cache
def layers_of(family: str, num_keypoints: int) -> tuple[Layer, ...]:
    """Convolutions of the default network in the order in which they run."""
    module = models.build(dict(name=family), num_keypoints=num_keypoints)
    ran: list[Any] = []

    def record(call, arguments, keywords, context):
        known = isinstance(context.module, nn.Dense | nn.Conv | Depthwise)
        if known and context.method_name == "__call__":
            ran.append(("/".join(context.module.path), context.module))
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, *SIZE, 3))
        )
    flat = flat_names(shapes["params"])
    return tuple(
        Layer(
            path,
            "DEPTHWISE_CONV_2D" if isinstance(layer, Depthwise) else "CONV_2D",
            flat[f"{path}/kernel"].shape,
            1 if isinstance(layer, nn.Dense) else _stride(layer),
        )
        for path, layer in ran
    )


def _stride(layer: Any) -> int:
    return layer.stride if isinstance(layer, Depthwise) else layer.strides


# --- the file's side --------------------------------------------------------------------


def read_plain(path: str | Path) -> Graph:
    """The network from `<name>_tensors.npz` and `<name>_graph.json`.

    Raises:
      FileNotFoundError: one of the two is missing.
      ValueError: they do not have that form.
    """
    path = Path(path)
    name = path.name.removesuffix("_tensors.npz")
    described = path.with_name(f"{name}_graph.json")
    if name == path.name or not described.exists():
        raise FileNotFoundError(
            f"{path} must be called <name>_tensors.npz and have <name>_graph.json beside it"
        )
    try:
        plain = json.loads(described.read_text())
        with np.load(path, allow_pickle=False) as constants:
            tensors = [_plain_tensor(row, constants) for row in plain["tensors"]]
        operators = tuple(
            Operator(
                row["op"],
                tuple(row["inputs"]),
                tuple(row["outputs"]),
                {_snake(key): value for key, value in row["options"].items()},
            )
            for row in plain["operators"]
        )
        return Graph(
            tuple(tensors), operators, tuple(plain["inputs"]), tuple(plain["outputs"])
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} and {described.name} do not describe a network "
            f"({type(error).__name__}: {error})"
        ) from None


def _plain_tensor(row: Any, constants: Any) -> Tensor:
    data = constants[f"t{row['index']}"] if row["const"] else None
    if data is not None and list(data.shape) != row["shape"]:
        raise ValueError(
            f"t{row['index']} has shape {list(data.shape)}, not {row['shape']}"
        )
    return Tensor(row["name"], tuple(row["shape"]), row["dtype"], data)


def _snake(name: str) -> str:
    """`FilterHeight` -> `filter_height`, the schema's spelling."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def check_constants(graph: Graph, name: str) -> None:
    """Every constant must be used exactly once.

    Raises:
      ValueError: naming the constants that are not.
    """
    uses = Counter(i for operator in graph.operators for i in operator.inputs)
    wrong = [
        f"{tensor.name!r} ({uses[i]} times)"
        for i, tensor in enumerate(graph.tensors)
        if tensor.data is not None and uses[i] != 1
    ]
    if wrong:
        raise ValueError(
            f"{name}: constants must be used once, but {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if wrong[3:] else "")
        )


def _keypoints(graph: Graph, name: str) -> int:
    shapes = [graph.tensors[i].shape for i in graph.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] < 1:
        raise ValueError(
            f"{name} has outputs of shapes {shapes}; a mobile network has one, "
            "[1, y, x, keypoints]"
        )
    return shapes[0][3]


# --- both -------------------------------------------------------------------------------


def _difference(
    graph: Graph,
    convolutions: list[Operator],
    layers: Sequence[Layer],
    others: dict[str, int],
) -> str | None:
    """The first way in which file and module differ, or None."""
    for n, (operator, layer) in enumerate(zip(convolutions, layers)):
        problem = _mismatch(graph, operator, layer)
        if problem:
            return f"convolution {n} ({layer.path}) {problem}"
    if len(convolutions) != len(layers):
        return f"{len(convolutions)} convolutions instead of {len(layers)}"
    found = Counter(
        op.kind for op in graph.operators if op.kind not in (*ACTIVATION, "RELU")
    )
    if found != others:
        return f"operators {dict(found)} instead of {others}"
    for operator in graph.operators:
        if operator.kind == "RESIZE_BILINEAR" and any(operator.options.values()):
            return "it resizes with aligned corners or half-pixel centres"
    return None


def _mismatch(graph: Graph, operator: Operator, layer: Layer) -> str | None:
    if operator.kind != layer.kind:
        return f"is a {operator.kind} there and a {layer.kind} here"
    if len(operator.inputs) != 3:
        return f"has {len(operator.inputs)} inputs instead of picture, kernel and bias"
    kernel, bias = (graph.tensors[i] for i in operator.inputs[1:])
    if kernel.data is None or bias.data is None:
        return "has no constant kernel and bias"
    shapes = kernel.shape, bias.shape
    wanted = layer.file_shape, layer.shape[-1:]
    if shapes != wanted:
        return f"has kernel and bias {shapes} there and {wanted} here"
    options = dict(
        padding="SAME",
        stride_h=layer.stride,
        stride_w=layer.stride,
        dilation_h_factor=1,
        dilation_w_factor=1,
        fused_activation_function=ACTIVATION[layer.kind],
    )
    for field, value in options.items():
        if operator.options.get(field) != value:
            return f"has {field}={operator.options.get(field)!r} instead of {value!r}"
    return None


def _fill(
    graph: Graph, convolutions: list[Operator], layers: Sequence[Layer]
) -> PyTree:
    flat = {}
    for operator, layer in zip(convolutions, layers):
        kernel, bias = (graph.tensors[i].data for i in operator.inputs[1:])
        assert kernel is not None and bias is not None
        depthwise = layer.kind == "DEPTHWISE_CONV_2D"
        # (1, h, w, c) -> (h, w, 1, c) and (out, h, w, in) -> (h, w, in, out).
        kernel = kernel.transpose((1, 2, 0, 3) if depthwise else (1, 2, 3, 0))
        flat[f"{layer.path}/kernel"] = np.ascontiguousarray(
            kernel.reshape(layer.shape), np.float32
        )
        flat[f"{layer.path}/bias"] = np.array(bias, np.float32)
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}
