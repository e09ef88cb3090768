"""Gradients inside of loops, as fast on a CPU as outside.

The gradient of a convolution is a convolution whose kernel's channel axes have changed places.
XLA:CPU brings kernels into the order of its fast routine in the outermost program only;
inside of a loop such a convolution takes ten times as long (jax 0.10 and 0.12). `laid_out`
writes the change of places down as a transposition, which is nothing beside the convolution.
Nothing else changes, on no device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core

_CALLS = (
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2",
    "custom_jvp_call", "custom_vjp_call",
)  # fmt: skip
_LAYOUT = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
"""NHWC, HWIO, NHWC."""


def laid_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for the body of a loop that takes gradients.

    Calls are inlined, so apply it to functions that have been differentiated already: rules
    of their own would be lost to a further derivative.
    """

    def call(*arguments: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        flat = jax.tree.leaves(arguments)
        found = _run(program.jaxpr, program.consts, flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return call


def _run(program: core.Jaxpr, constants: Any, arguments: Any) -> list[Any]:
    values: dict[Any, Any] = dict(zip(program.constvars, constants))
    values.update(zip(program.invars, arguments))

    def read(name: Any) -> Any:
        return name.val if isinstance(name, core.Literal) else values[name]

    for step in program.eqns:
        given = [read(name) for name in step.invars]
        inner = step.params.get("jaxpr", step.params.get("call_jaxpr"))
        if step.primitive.name in _CALLS and inner is not None:
            closed = isinstance(inner, core.ClosedJaxpr)
            found = _run(
                inner.jaxpr if closed else inner, inner.consts if closed else (), given
            )
        elif step.primitive.name == "conv_general_dilated":
            found = [_convolve(*given, **step.params)]
        else:
            params: Any = step.primitive.get_bind_params(step.params)
            # Before jax 0.10 functions came beside the parameters.
            functions, params = params if isinstance(params, tuple) else ((), params)
            found = step.primitive.bind(*functions, *given, **params)
            found = found if step.primitive.multiple_results else [found]
        values.update(zip(step.outvars, found))
    return [read(name) for name in program.outvars]


def _convolve(x, kernel, *, dimension_numbers, **options: Any):
    """The convolution with its kernel in the order HWIO."""
    numbers, wanted = dimension_numbers, dimension_numbers
    groups = options["feature_group_count"], options["batch_group_count"]
    plain = (numbers.lhs_spec, numbers.out_spec) == (_LAYOUT.lhs_spec, _LAYOUT.out_spec)
    if groups == (1, 1) and plain and numbers.rhs_spec != _LAYOUT.rhs_spec:
        outputs, inputs, rows, columns = numbers.rhs_spec
        kernel = lax.transpose(kernel, (rows, columns, inputs, outputs))
        wanted = _LAYOUT
    return lax.conv_general_dilated_p.bind(
        x, kernel, dimension_numbers=wanted, **options
    )
