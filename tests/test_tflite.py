"""The .tflite reader on a file that another library wrote, and on damaged ones."""

import flatbuffers
import numpy as np
import pytest

from pose_jax.convert import mobile, tflite
from pose_jax.convert.tflite import TfliteError

FLOAT32, FLOAT16, INT8 = 0, 1, 9
CONV, DEQUANTIZE, CUSTOM = 3, 6, 32
KERNEL = np.arange(2 * 3 * 3 * 1, dtype=np.float32).reshape(2, 3, 3, 1) / 8
BIAS = np.array([-1.5, 2.0], np.float32)


class Writer:
    """Tables by hand through the `flatbuffers` package, which the reader does not use."""

    def __init__(self):
        self.builder = flatbuffers.Builder(0)

    def table(self, size, fields):
        """`fields`: {number: (slot method, value)}."""
        self.builder.StartObject(size)
        for number, (kind, value) in fields.items():
            default = 0
            getattr(self.builder, f"Prepend{kind}Slot")(number, value, default)
        return self.builder.EndObject()

    def tables(self, offsets):
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def numbers(self, values):
        return self.builder.CreateNumpyVector(np.asarray(values, np.int32))

    def offset(self, value):
        return "UOffsetTRelative", value

    def tensor(self, name, shape, dtype, buffer):
        fields = {
            0: self.offset(self.numbers(shape)),
            1: ("Int8", dtype),
            2: ("Uint32", buffer),
            3: self.offset(self.builder.CreateString(name)),
        }
        return self.table(8, fields)

    def operator(self, code, inputs, outputs, options=None):
        fields = {
            0: ("Uint32", code),
            1: self.offset(self.numbers(inputs)),
            2: self.offset(self.numbers(outputs)),
        }
        if options is not None:
            fields |= {3: ("Uint8", 1), 4: self.offset(options)}
        return self.table(9, fields)


def model(*, kernel_type=FLOAT32, subgraphs=1):
    """A picture through one convolution of stride 2 x 3, then a custom operator."""
    w = Writer()
    kernel = KERNEL.astype({FLOAT32: "f4", FLOAT16: "f2", INT8: "i1"}[kernel_type])
    contents = [b"", kernel.tobytes(), BIAS.tobytes()]
    vectors = [
        w.builder.CreateNumpyVector(np.frombuffer(c, np.uint8)) for c in contents
    ]
    buffers = [w.table(3, {0: w.offset(v)}) for v in vectors]
    custom = w.builder.CreateString("Sharpen")
    codes = [
        w.table(4, {0: ("Int8", CONV), 3: ("Int32", CONV)}),
        w.table(4, {0: ("Int8", CUSTOM), 1: w.offset(custom), 3: ("Int32", CUSTOM)}),
        w.table(4, {0: ("Int8", DEQUANTIZE)}),
    ]
    tensors = [
        w.tensor("image", [1, 4, 6, 1], FLOAT32, 0),
        w.tensor("kernel", KERNEL.shape, kernel_type, 1),
        w.tensor("bias", [2], FLOAT32, 2),
        w.tensor("out", [1, 2, 2, 2], FLOAT32, 0),
        w.tensor("kernel32", KERNEL.shape, FLOAT32, 0),
        w.tensor("end", [1, 2, 2, 2], FLOAT32, 0),
    ]
    # Padding SAME, no activation and dilation 1 are defaults, which are not stored.
    options = w.table(7, {1: ("Int32", 3), 2: ("Int32", 2)})
    half = kernel_type == FLOAT16
    operators = [w.operator(2, [1], [4])] if half else []
    operators += [
        w.operator(0, [0, 4 if half else 1, 2], [3], options),
        w.operator(1, [3, -1], [5]),
    ]
    graph = w.table(
        5,
        {
            0: w.offset(w.tables(tensors)),
            1: w.offset(w.numbers([0])),
            2: w.offset(w.numbers([5])),
            3: w.offset(w.tables(operators)),
        },
    )
    fields = {
        0: ("Uint32", 3),
        1: w.offset(w.tables(codes)),
        2: w.offset(w.tables([graph] * subgraphs)),
        4: w.offset(w.tables(buffers)),
    }
    w.builder.Finish(w.table(8, fields), file_identifier=b"TFL3")
    return bytes(w.builder.Output())


@pytest.fixture
def read(tmp_path):
    def run(content):
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return tflite.read(path)

    return run


@pytest.mark.parametrize("kernel_type", [FLOAT32, FLOAT16])
def test_reads_what_flatbuffers_wrote(read, kernel_type):
    """Half-precision constants are widened and their operator is gone."""
    graph = read(model(kernel_type=kernel_type))
    half = kernel_type == FLOAT16
    number = 4 if half else 1
    assert (graph.inputs, graph.outputs) == ((0,), (5,))
    assert [t.name for t in graph.tensors] == [
        "image", "kernel", "bias", "out", "kernel32", "end",
    ]  # fmt: skip
    assert graph.tensors[0].shape == (1, 4, 6, 1)
    constants = [i for i, t in enumerate(graph.tensors) if t.data is not None]
    assert constants == sorted([number, 2])
    np.testing.assert_array_equal(graph.tensors[number].data, KERNEL)
    np.testing.assert_array_equal(graph.tensors[2].data, BIAS)
    assert graph.tensors[number].data.dtype == np.float32
    convolution, custom = graph.operators
    assert convolution.kind == "CONV_2D"
    assert (convolution.inputs, convolution.outputs) == ((0, number, 2), (3,))
    assert convolution.options == dict(
        padding="SAME",
        stride_w=3,
        stride_h=2,
        fused_activation_function="NONE",
        dilation_w_factor=1,
        dilation_h_factor=1,
    )
    assert (custom.kind, custom.inputs, custom.options) == (
        "CUSTOM Sharpen",
        (3, -1),
        {},
    )


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "is not a .tflite file"),
        (b"PK\x03\x04 some archive", "is not a .tflite file"),
        (model(kernel_type=INT8), "'kernel' is quantised"),
        (model(subgraphs=2), "2 subgraphs"),
        (model()[:200], "truncated"),
    ],
    ids=["empty", "archive", "quantised", "subgraphs", "truncated"],
)
def test_other_files_are_explained(read, content, message):
    with pytest.raises(TfliteError, match=message):
        read(content)


def test_every_cut_is_noticed(read):
    content = model()
    for length in range(len(content)):
        with pytest.raises(TfliteError):
            read(content[:length])


def test_damage_gives_no_other_error(read, generator):
    """A changed byte is either harmless or a clear error; nothing is read out of bounds."""
    content = model(kernel_type=FLOAT16)
    refused = 0
    for position in range(8, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= int(generator.integers(1, 256))
        try:
            read(bytes(damaged))
        except TfliteError as error:
            refused += 1
            assert "model.tflite" in str(error)
    assert refused > 50


def test_published_file_equals_its_plain_form(data_root):
    """All tensors and operators of the pose machine, read in two ways."""
    folder = data_root / "pretrained"
    plain = mobile.read_plain(folder / "cpm_model_tensors.npz")
    graph = tflite.read(folder / "cpm_model.tflite")
    assert (graph.inputs, graph.outputs) == (plain.inputs, plain.outputs)
    assert len(graph.operators) == len(plain.operators) == 237
    for ours, theirs in zip(graph.operators, plain.operators):
        assert (ours.kind, ours.inputs, ours.outputs) == (
            theirs.kind, theirs.inputs, theirs.outputs,
        )  # fmt: skip
        # The plain form also lists two fields that only quantised networks use.
        known = {k: v for k, v in theirs.options.items() if k in ours.options}
        assert ours.options == known
        assert set(theirs.options) - set(known) <= {
            "pot_scale_int16", "quantized_bias_type",
        }  # fmt: skip
    for ours, theirs in zip(graph.tensors, plain.tensors, strict=True):
        assert (ours.name, ours.shape, ours.dtype) == (
            theirs.name, theirs.shape, theirs.dtype,
        )  # fmt: skip
        np.testing.assert_array_equal(ours.data, theirs.data)
