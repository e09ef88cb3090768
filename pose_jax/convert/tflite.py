"""Reader of .tflite files: tensors and operators of float networks, no TensorFlow.

A .tflite file is one FlatBuffer. A table starts with the signed distance to its *vtable*,
which holds 16-bit offsets of the fields (0 = absent, the schema's default holds). Strings,
vectors and sub-tables are reached by unsigned 32-bit distances. Field numbers below are the
order of declaration in TensorFlow's `lite/schema/schema.fbs`.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np


class TfliteError(ValueError):
    """The file is no float .tflite network that this reader understands."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Constants carry `data`; what the network computes has None.

    Attributes:
      name, shape, dtype: as in the file; `dtype` is numpy's name.
      data: array of that shape; half-precision constants are widened to float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Operator:
    """One step of the network.

    Attributes:
      kind: the schema's name, such as `CONV_2D`.
      inputs, outputs: tensor numbers; -1 is an optional input that is absent.
      options: the schema's fields (`stride_h`, `padding` as `SAME` or `VALID`,
        `fused_activation_function` as `NONE`, `RELU`, ...); empty for kinds without.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network: operators in the order in which they run, tensors by number."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


IDENTIFIER = b"TFL3"

DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool",
    7: "int16", 9: "int8", 10: "float64",
}  # fmt: skip
QUANTISED = ("uint8", "int8", "int16")

KINDS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D", 6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC",
    17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 20: "RELU_N1_TO_1", 21: "RELU6",
    22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 34: "PAD", 39: "TRANSPOSE",
    40: "MEAN", 41: "SUB", 67: "TRANSPOSE_CONV", 97: "RESIZE_NEAREST_NEIGHBOR",
    98: "LEAKY_RELU", 117: "HARD_SWISH",
}  # fmt: skip

PADDINGS = {0: "SAME", 1: "VALID"}
ACTIVATIONS = {
    0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH", 5: "SIGN_BIT",
}  # fmt: skip

# Per kind: field number, name, default, and the names of the values or a format letter.
_PADDING, _ACTIVATION = ("padding", 0, PADDINGS), "fused_activation_function"
_STRIDES = ((1, "stride_w", 0, "i"), (2, "stride_h", 0, "i"))
_POOL = (
    (0, *_PADDING), *_STRIDES, (3, "filter_width", 0, "i"), (4, "filter_height", 0, "i"),
    (5, _ACTIVATION, 0, ACTIVATIONS),
)  # fmt: skip
_RESIZE = ((2, "align_corners", False, "?"), (3, "half_pixel_centers", False, "?"))
OPTIONS: dict[str, tuple[tuple[int, str, Any, Any], ...]] = {
    "ADD": ((0, _ACTIVATION, 0, ACTIVATIONS),),
    "CONCATENATION": ((0, "axis", 0, "i"), (1, _ACTIVATION, 0, ACTIVATIONS)),
    "CONV_2D": (
        (0, *_PADDING), *_STRIDES, (3, _ACTIVATION, 0, ACTIVATIONS),
        (4, "dilation_w_factor", 1, "i"), (5, "dilation_h_factor", 1, "i"),
    ),
    "DEPTHWISE_CONV_2D": (
        (0, *_PADDING), *_STRIDES, (3, "depth_multiplier", 0, "i"),
        (4, _ACTIVATION, 0, ACTIVATIONS),
        (5, "dilation_w_factor", 1, "i"), (6, "dilation_h_factor", 1, "i"),
    ),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "RESIZE_BILINEAR": _RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": ((0, *_RESIZE[0][1:]), (1, *_RESIZE[1][1:])),
}  # fmt: skip


def read(path: str | Path) -> Graph:
    """The network of a .tflite file.

    Raises:
      FileNotFoundError: there is no such file.
      TfliteError: another format, truncated, quantised, or with several subgraphs.
    """
    content = Path(path).read_bytes()
    if content[4:8] != IDENTIFIER:
        raise TfliteError(
            f"{path} is not a .tflite file (bytes 4 to 7 are {content[4:8]!r}, not "
            f"{IDENTIFIER!r})"
        )
    try:
        return _model(_Table(content, _number(content, 0, "I")))
    except TfliteError as error:
        raise TfliteError(f"{path}: {error}") from None


# --- FlatBuffers ------------------------------------------------------------------------


def _number(content: bytes, at: int, letter: str) -> Any:
    """One little-endian number; `letter` is `struct`'s."""
    if at < 0 or at + struct.calcsize(letter) > len(content):
        raise TfliteError(
            f"the file is truncated or damaged: it points to byte {at} but has "
            f"{len(content)}; copy it again"
        )
    return struct.unpack_from("<" + letter, content, at)[0]


class _Table:
    """A table of a FlatBuffer, read field by field."""

    def __init__(self, content: bytes, at: int):
        self._content, self._at = content, at
        self._vtable = at - _number(content, at, "i")
        self._size = _number(content, self._vtable, "H")

    def _field(self, index: int) -> int | None:
        """Position of a field, or None where it is absent."""
        slot = 4 + 2 * index
        if slot + 2 > self._size:
            return None
        offset = _number(self._content, self._vtable + slot, "H")
        return self._at + offset if offset else None

    def number(self, index: int, letter: str, default: Any = 0) -> Any:
        at = self._field(index)
        return default if at is None else _number(self._content, at, letter)

    def table(self, index: int) -> _Table | None:
        at = self._field(index)
        if at is None:
            return None
        return _Table(self._content, at + _number(self._content, at, "I"))

    def vector(self, index: int, dtype: str) -> np.ndarray:
        """A vector of numbers (a view of the file); empty where absent."""
        at = self._field(index)
        if at is None:
            return np.zeros(0, dtype)
        start = at + _number(self._content, at, "I")
        count = _number(self._content, start, "I")
        end = start + 4 + count * np.dtype(dtype).itemsize
        if end > len(self._content):
            raise TfliteError(
                f"the file is truncated: a vector ends at byte {end} of "
                f"{len(self._content)}; copy it again"
            )
        return np.frombuffer(self._content, dtype, count, start + 4)

    def tables(self, index: int) -> list[_Table]:
        """A vector of tables: each element is the distance from itself."""
        at = self._field(index)
        distances = self.vector(index, "<u4")
        if at is None or not len(distances):
            return []
        first = at + _number(self._content, at, "I") + 4
        return [
            _Table(self._content, first + 4 * i + int(distance))
            for i, distance in enumerate(distances)
        ]

    def text(self, index: int) -> str:
        return self.vector(index, "u1").tobytes().decode("utf-8", "replace")


# --- schema -----------------------------------------------------------------------------


def _model(model: _Table) -> Graph:
    subgraphs = model.tables(2)
    if len(subgraphs) != 1:
        raise TfliteError(f"it has {len(subgraphs)} subgraphs; only one is supported")
    graph = subgraphs[0]
    buffers = [table.vector(0, "u1") for table in model.tables(4)]
    kinds = [_kind(code) for code in model.tables(1)]
    tensors = [_tensor(table, buffers) for table in graph.tables(0)]
    operators = [_operator(table, kinds, len(tensors)) for table in graph.tables(3)]
    return Graph(
        *_widen(tensors, operators),
        _numbers(graph, 1, len(tensors)),
        _numbers(graph, 2, len(tensors)),
    )


def _kind(code: _Table) -> str:
    # Codes above 127 did not fit the old 8-bit field, so the larger of the two holds.
    number = max(code.number(0, "b"), code.number(3, "i"))
    if number == 32:
        return f"CUSTOM {code.text(1)}"
    return KINDS.get(number, f"OPERATOR_{number}")


def _tensor(table: _Table, buffers: list[np.ndarray]) -> Tensor:
    name = table.text(3)
    shape = tuple(int(n) for n in table.vector(0, "<i4"))
    number = table.number(1, "b")
    dtype = DTYPES.get(number)
    if dtype is None:
        raise TfliteError(f"tensor {name!r} has the unsupported type {number}")
    if dtype in QUANTISED:
        raise TfliteError(
            f"tensor {name!r} is quantised ({dtype}); convert the float32 version of this "
            "network"
        )
    index = table.number(2, "I")
    if index >= len(buffers):
        raise TfliteError(f"tensor {name!r} names buffer {index} of {len(buffers)}")
    raw = buffers[index]
    if not len(raw):
        return Tensor(name, shape, dtype)
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if min(shape, default=1) < 0 or len(raw) != wanted:
        raise TfliteError(
            f"tensor {name!r} of shape {list(shape)} has {len(raw)} bytes, not {wanted}"
        )
    little = np.dtype(dtype).newbyteorder("<")
    return Tensor(name, shape, dtype, raw.view(little).astype(dtype).reshape(shape))


def _numbers(table: _Table, index: int, count: int) -> tuple[int, ...]:
    numbers = tuple(int(n) for n in table.vector(index, "<i4"))
    if any(not -1 <= n < count for n in numbers):
        raise TfliteError(f"tensor numbers {numbers} of {count} tensors")
    return numbers


def _operator(table: _Table, kinds: list[str], count: int) -> Operator:
    code = table.number(0, "I")
    if code >= len(kinds):
        raise TfliteError(f"operator code {code} of {len(kinds)}")
    kind = kinds[code]
    record, options = table.table(4), {}
    for index, name, default, values in OPTIONS.get(kind, ()):
        letter = values if isinstance(values, str) else "b"
        value = default if record is None else record.number(index, letter, default)
        options[name] = (
            value if isinstance(values, str) else values.get(value, str(value))
        )
    return Operator(kind, _numbers(table, 1, count), _numbers(table, 2, count), options)


def _widen(
    tensors: list[Tensor], operators: list[Operator]
) -> tuple[tuple[Tensor, ...], tuple[Operator, ...]]:
    """Half-precision constants become float32; the operators that did so disappear."""
    kept = []
    for operator in operators:
        if operator.kind != "DEQUANTIZE":
            kept.append(operator)
            continue
        if len(operator.inputs) != 1 or len(operator.outputs) != 1:
            raise TfliteError("a DEQUANTIZE operator needs one input and one output")
        half, target = operator.inputs[0], operator.outputs[0]
        data = tensors[half].data
        if data is None:
            raise TfliteError(
                "it computes in half precision; convert the float32 version"
            )
        tensors[target] = dataclasses.replace(
            tensors[target], data=data.astype(np.float32)
        )
        tensors[half] = dataclasses.replace(tensors[half], data=None)
    return tuple(tensors), tuple(kept)
