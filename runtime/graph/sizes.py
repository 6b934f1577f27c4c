"""Compute how large the tensors of a plain export become in one pass, before it runs.

In a pass over a known number of ids, every size in a normal export is a + b p, where p is the length of the past. So
are the integers that sizes are computed from. This module propagates them through shapes and constants. A size that
depends on anything else raises an error, since its memory could not be predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.graph.architecture import Architecture
from runtime.graph.data import INT32, INT64, Node
from runtime.graph.reader import OnnxModel, Tensor

Line = tuple[int, int]
"""(a, b): the number a + b p."""
MOST_NUMBERS = 16
"""The values of larger tensors are not tracked."""
UNBOUNDED = 2**31 - 1
"""A Slice to this end or beyond goes to the end of the dimension."""
SLACK = 4
"""How many times as large as in a normal export tensors and passes may be."""
TENSORS_PER_LAYER = 60
"""How many tensors as large as the attention weights or the widest layer a normal export computes in a layer."""


class Bounds(NamedTuple):
    """The shape of a tensor. numbers: the values of an integer tensor of at most one dimension, if they are known."""

    dims: tuple[Line, ...]
    numbers: tuple[Line, ...] | None = None


def check_sizes(model: OnnxModel, architecture: Architecture, n_ids: int) -> None:
    """Raise ValueError, naming the node, if a pass over `n_ids` ids could take much more than that of a normal export.

    The past may have any length up to n_positions - n_ids.
    """
    try:
        _Pass(model, architecture, n_ids).check()
    except ValueError as error:
        raise ValueError(
            f"{model.path} is no plain export of GPT-2 that is run: {error}; build a model folder from the checkpoint, "
            "or verify='off' trusts the graph as it is"
        ) from None


def _attribute(node: Node, name: str, default: Any) -> Any:
    return next((one.value for one in node.attributes if one.name == name), default)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank} dimensions")
    return axis % rank


def _constant(tensor: Tensor) -> Bounds:
    dims = tuple((size, 0) for size in tensor.shape)
    if tensor.dtype not in ("int32", "int64") or len(dims) > 1 or tensor.value is None:
        return Bounds(dims)
    numbers = np.frombuffer(tensor.value, np.dtype(tensor.dtype).newbyteorder("<")).tolist()
    return Bounds(dims, tuple((one, 0) for one in numbers) if len(numbers) <= MOST_NUMBERS else None)


def _fixed(bounds: Bounds) -> list[int]:
    """Known numbers that do not depend on the past. Raises ValueError for others."""
    if any(b for _, b in _lines(bounds)):
        raise ValueError("it depends on the past")
    return [a for a, _ in _lines(bounds)]


def _lines(bounds: Bounds) -> tuple[Line, ...]:
    if bounds.numbers is None:
        raise ValueError("it depends on more than sizes")
    return bounds.numbers


def _along(numbers: tuple[Line, ...], n: int) -> tuple[Line, ...]:
    return numbers * n if len(numbers) == 1 else numbers


def _times(one: Line, other: Line) -> Line:
    if one[1] and other[1]:
        raise ValueError("it is a product of two lengths")
    return one[0] * other[0], one[0] * other[1] + one[1] * other[0]


def _sum(lines: Sequence[Line]) -> Line:
    return sum(a for a, _ in lines), sum(b for _, b in lines)


_COMBINED: dict[str, Callable[[Line, Line], Line]] = {
    "Add": lambda one, other: (one[0] + other[0], one[1] + other[1]),
    "Sub": lambda one, other: (one[0] - other[0], one[1] - other[1]),
    "Mul": _times,
}


class _Pass:
    """One pass: a rule for each operator computes the bounds of a node's outputs from those of its inputs."""

    def __init__(self, model: OnnxModel, architecture: Architecture, n_ids: int) -> None:
        self.nodes = model.nodes
        self.architecture = architecture
        self.n_ids = n_ids
        # The longest past.
        self.past = architecture.n_positions - n_ids
        # Without room for a past, p is always 0.
        slope = min(self.past, 1)
        row = Bounds(((1, 0), (n_ids, 0)))
        past = Bounds(((1, 0), (architecture.n_head, 0), (0, slope), (architecture.head_dim, 0)))
        self.values = {name: _constant(tensor) for name, tensor in model.constants.items()}
        self.values |= {one.name: past for one in model.inputs if one.name.startswith("past_key_values.")}
        self.values |= {"input_ids": row, "position_ids": row, "attention_mask": Bounds(((1, 0), (n_ids, slope)))}

    def check(self) -> None:
        """Raise ValueError, naming the node, for a tensor or a pass that is too large."""
        largest = SLACK * self.largest()
        most = SLACK * self.most()
        total = 0
        for node in self.nodes:
            try:
                found = _RULES[node.operator](self, node, [self.values[name] for name in node.inputs])
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"the size of what {_named(node)} makes cannot be told ({error})") from None
            self.values.update(zip(node.outputs, found, strict=False))
            size = max(self.size(one.dims) for one in found)
            total += size + self.work(node)
            if size > largest:
                raise ValueError(
                    f"{_named(node)} makes up to {size:,} numbers; no tensor of this model has {largest:,}"
                )
            if total > most:
                raise ValueError(f"up to {_named(node)} it makes {total:,} numbers; a pass takes less than {most:,}")

    def largest(self) -> int:
        """The elements of the largest tensor of a normal pass: logits, attention weights, the widest layer, or `wte`.

        Dynamically quantized exports convert all of `wte` to fp32 in every pass.
        """
        one = self.architecture
        width = max(3 * one.n_embd, one.inner_size, one.vocab_size, one.n_head * one.n_positions)
        return max(self.n_ids * width, one.n_positions * one.n_embd, one.vocab_size * one.n_embd)

    def most(self) -> int:
        """The elements that a normal pass computes in all, plus the multiplications of its products."""
        one = self.architecture
        n = self.n_ids
        length = one.n_positions
        width = max(3 * one.n_embd, one.inner_size)
        made = TENSORS_PER_LAYER * (n * (one.n_head * length + width) + length * one.n_embd)
        products = n * one.n_embd * (4 * one.n_embd + 2 * one.inner_size + 2 * length)
        return (one.n_layer + 1) * (made + products) + (n + 1) * one.vocab_size * (one.n_embd + SLACK)

    def size(self, dims: Sequence[Line]) -> int:
        """The largest number of elements."""
        return math.prod(self.high(dim) for dim in dims)

    def high(self, line: Line) -> int:
        return max(line[0], line[0] + line[1] * self.past)

    def low(self, line: Line) -> int:
        return min(line[0], line[0] + line[1] * self.past)

    def work(self, node: Node) -> int:
        """The multiplications of a node that is a product; 0 for others."""
        if _RULES[node.operator] is not _Pass.multiply:
            return 0
        left = self.values[node.inputs[0]].dims
        inner = left[-2] if _attribute(node, "transA", 0) else left[-1]
        return self.size((*self.values[node.outputs[0]].dims, inner))

    def broadcast(self, *shapes: Sequence[Line]) -> tuple[Line, ...]:
        rank = max(map(len, shapes))
        padded = [((1, 0),) * (rank - len(shape)) + tuple(shape) for shape in shapes]
        return tuple(self.together(dims) for dims in zip(*padded, strict=True))

    def together(self, dims: Sequence[Line]) -> Line:
        """The broadcast of dimensions: they must be equal, or 1."""
        found = {dim for dim in dims if dim != (1, 0)}
        if len(found) > 1:
            raise ValueError("sizes differ")
        return found.pop() if found else (1, 0)

    # rules ----------------------------------------------------------------------------------------------------------

    def same(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        """All outputs have the shape of the first input."""
        return [Bounds(given[0].dims)] * len(node.outputs)

    def kept(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        # Only these types keep every integer.
        is_whole = node.operator == "Identity" or _attribute(node, "to", 0) in (INT32, INT64)
        return [given[0] if is_whole else Bounds(given[0].dims)]

    def negative(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        numbers = given[0].numbers
        return [Bounds(given[0].dims, None if numbers is None else self.small([(-a, -b) for a, b in numbers]))]

    def elementwise(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = self.broadcast(*(one.dims for one in given))
        left = given[0].numbers
        right = given[1].numbers
        combine = self.equal if node.operator == "Equal" else _COMBINED.get(node.operator)
        if combine is None or left is None or right is None:
            return [Bounds(dims)]
        n = max(len(left), len(right))
        pairs = zip(_along(left, n), _along(right, n), strict=True)
        return [Bounds(dims, self.small([combine(one, other) for one, other in pairs]))]

    def small(self, numbers: Sequence[Line]) -> tuple[Line, ...]:
        """The numbers. Raises ValueError unless all are far below the overflow of 32 bits."""
        if any(self.high(line) >= UNBOUNDED or self.low(line) <= -UNBOUNDED for line in numbers):
            raise ValueError("it computes with numbers larger than any size")
        return tuple(numbers)

    def equal(self, one: Line, other: Line) -> Line:
        difference = one[0] - other[0], one[1] - other[1]
        if difference == (0, 0):
            return 1, 0
        if self.low(difference) <= 0 <= self.high(difference):
            raise ValueError("it compares lengths")
        return 0, 0

    def where(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        dims = self.broadcast(*(one.dims for one in given))
        condition, left, right = (one.numbers for one in given)
        if condition is None or left is None or right is None:
            return [Bounds(dims)]
        n = max(len(condition), len(left), len(right))
        triples = zip(_along(condition, n), _along(left, n), _along(right, n), strict=True)
        return [Bounds(dims, tuple(one if yes == (1, 0) else other for yes, one, other in triples))]

    def shape(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims[slice(_attribute(node, "start", None), _attribute(node, "end", None))]
        return [Bounds(((len(dims), 0),), dims)]

    def gather(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        data, indices = given
        axis = _axis(_attribute(node, "axis", 0), len(data.dims))
        numbers = None
        if data.numbers is not None and len(data.dims) == 1 and indices.numbers is not None:
            numbers = tuple(data.numbers[index] for index in _fixed(indices))
        return [Bounds((*data.dims[:axis], *indices.dims, *data.dims[axis + 1 :]), numbers)]

    def concat(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        shapes = [one.dims for one in given]
        axis = _axis(_attribute(node, "axis", 0), len(shapes[0]))
        dims = [
            _sum(same) if index == axis else self.together(same) for index, same in enumerate(zip(*shapes, strict=True))
        ]
        known = [one.numbers for one in given if one.numbers is not None]
        numbers = tuple(number for one in known for number in one)
        is_known = len(known) == len(given) and len(dims) == 1 and len(numbers) <= MOST_NUMBERS
        return [Bounds(tuple(dims), numbers if is_known else None)]

    def axes(self, node: Node, given: list[Bounds]) -> list[int] | None:
        """The axes of the node, in an attribute or the second input; None if there are none."""
        axes = _attribute(node, "axes", None)
        if axes is None and len(given) > 1:
            return _fixed(given[1])
        return None if axes is None else list(axes)

    def unsqueeze(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        axes = self.axes(node, given) or []
        rank = len(given[0].dims) + len(axes)
        places = {_axis(axis, rank) for axis in axes}
        old = iter(given[0].dims)
        dims = tuple((1, 0) if index in places else next(old) for index in range(rank))
        return [Bounds(dims, given[0].numbers if rank < 2 else None)]

    def squeeze(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims
        axes = self.axes(node, given)
        if axes is None:
            axes = [index for index, dim in enumerate(dims) if dim == (1, 0)]
        places = {_axis(axis, len(dims)) for axis in axes}
        return [Bounds(tuple(dim for index, dim in enumerate(dims) if index not in places), given[0].numbers)]

    def reshape(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        data, target = given
        copies = not _attribute(node, "allowzero", 0)
        dims: list[Line | None] = []
        for index, line in enumerate(_lines(target)):
            if line == (-1, 0):
                dims.append(None)
            elif line == (0, 0) and copies:
                dims.append(data.dims[index])
            elif self.low(line) < int(copies):
                raise ValueError("a size may be negative, or 0, which stands for the size that is there")
            else:
                dims.append(line)
        shape = tuple(self.left_over(data.dims, dims) if dim is None else dim for dim in dims)
        return [Bounds(shape, data.numbers if len(shape) < 2 else None)]

    def left_over(self, whole: Sequence[Line], dims: Sequence[Line | None]) -> Line:
        """The dimension -1 of a reshape: the number of elements divided by the other dimensions."""
        lengths = [dim for dim in whole if dim[1]]
        divisor = 1
        for dim in dims:
            if dim is not None and dim[1]:
                lengths.remove(dim)
            elif dim is not None:
                divisor *= dim[0]
        n = math.prod(a for a, b in whole if not b)
        if len(lengths) > 1 or divisor == 0 or n % divisor:
            raise ValueError("the dimension that is left is no whole number")
        return _times((n // divisor, 0), lengths[0] if lengths else (1, 0))

    def flatten(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims
        axis = _axis(_attribute(node, "axis", 1), len(dims) + 1)
        return [Bounds((self.left_over(dims[:axis], []), self.left_over(dims[axis:], [])))]

    def transpose(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims
        order = _attribute(node, "perm", tuple(reversed(range(len(dims)))))
        if sorted(order) != list(range(len(dims))):
            raise ValueError("its perm is none of these dimensions")
        return [Bounds(tuple(dims[index] for index in order))]

    def expand(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        return [Bounds(self.broadcast(given[0].dims, _lines(given[1])))]

    def constant_of_shape(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = _lines(given[0])
        if any(self.low(dim) < 0 for dim in dims):
            raise ValueError("a size may be negative")
        value = _attribute(node, "value", None)
        filled = None if value is None else _constant(value).numbers
        n, per_past = dims[0] if len(dims) == 1 else (0, 1)
        is_known = filled is not None and not per_past and n <= MOST_NUMBERS
        return [Bounds(dims, _along(filled, n) if is_known and filled else None)]

    def range(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        (start,) = _lines(given[0])
        (limit,) = _lines(given[1])
        step = _fixed(given[2])
        length = limit[0] - start[0], limit[1] - start[1]
        if step != [1] or self.low(length) < 0:
            raise ValueError("its step is not 1, or its end before its start")
        return [Bounds((length,))]

    def slice(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        data = given[0]
        starts = _lines(given[1])
        ends = _lines(given[2])
        axes = _fixed(given[3]) if len(given) > 3 else list(range(len(starts)))
        if len(given) > 4 and any(step != 1 for step in _fixed(given[4])):
            raise ValueError("its step is not 1")
        dims = list(data.dims)
        numbers = data.numbers if len(dims) == 1 else None
        for written, start, end in zip(axes, starts, ends, strict=True):
            axis = _axis(written, len(dims))
            begin = self.place(start, dims[axis])
            stop = self.place(end, dims[axis])
            if numbers is not None:
                numbers = numbers[_whole(begin) : _whole(stop)]
            dims[axis] = stop[0] - begin[0], stop[1] - begin[1]
            if self.low(dims[axis]) < 0:
                raise ValueError("its end may lie before its start")
        return [Bounds(tuple(dims), numbers)]

    def place(self, line: Line, dim: Line) -> Line:
        """The begin or end of a slice in a dimension, with negative and too large numbers resolved."""
        if self.high(line) < 0:
            line = line[0] + dim[0], line[1] + dim[1]
        beyond = line[0] - dim[0], line[1] - dim[1]
        if self.low(line) >= UNBOUNDED or self.low(beyond) >= 0:
            return dim
        if self.low(line) < 0 or self.high(beyond) > 0:
            raise ValueError("it may begin or end outside")
        return line

    def split(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims
        axis = _axis(_attribute(node, "axis", 0), len(dims))
        sizes = _fixed(given[1]) if len(given) > 1 else list(_attribute(node, "split", ()))
        n = len(node.outputs)
        parts = sizes or [-(-_whole(dims[axis]) // n)] * n
        return [Bounds((*dims[:axis], (part, 0), *dims[axis + 1 :])) for part in parts]

    def reduce(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        dims = given[0].dims
        axes = self.axes(node, given)
        places = {_axis(axis, len(dims)) for axis in (range(len(dims)) if axes is None else axes)}
        if _attribute(node, "keepdims", 1):
            return [Bounds(tuple((1, 0) if index in places else dim for index, dim in enumerate(dims)))]
        return [Bounds(tuple(dim for index, dim in enumerate(dims) if index not in places))]

    def multiply(self, node: Node, given: list[Bounds]) -> list[Bounds]:
        left = given[0].dims
        right = given[1].dims
        rows = left[-1] if _attribute(node, "transA", 0) else left[-2]
        columns = right[-2] if _attribute(node, "transB", 0) else right[-1]
        batch = self.broadcast(left[:-2], right[:-2]) if len(left) + len(right) > 4 else ()
        return [Bounds((*batch, rows, columns))]

    def quantize(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        return [Bounds(given[0].dims), Bounds(()), Bounds(())]

    def value(self, node: Node, given: list[Bounds]) -> list[Bounds]:  # noqa: ARG002
        (attribute,) = node.attributes
        if attribute.type == "tensor":
            return [_constant(attribute.value)]
        if attribute.name == "value_int":
            return [Bounds((), ((attribute.value, 0),))]
        if attribute.name == "value_ints":
            return [Bounds(((len(attribute.value), 0),), tuple((one, 0) for one in attribute.value))]
        return [Bounds(())]


def _named(node: Node) -> str:
    return f"node {node.name!r}, {node.operator!r},"


def _whole(line: Line) -> int:
    if line[1]:
        raise ValueError("it depends on the past")
    return line[0]


Rule = Callable[[_Pass, Node, list[Bounds]], list[Bounds]]
_SAME = (
    *("Abs", "Erf", "IsNaN", "Not", "Relu", "Sigmoid", "Sqrt", "Tanh", "Softmax", "Gelu", "QuickGelu", "FastGelu"),
    *("BiasGelu", "LayerNormalization", "SkipLayerNormalization", "CumSum", "Trilu", "DequantizeLinear"),
)
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Min", "Max"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _Pass.same),
    **dict.fromkeys(_ELEMENTWISE, _Pass.elementwise),
    **dict.fromkeys(("Cast", "Identity"), _Pass.kept),
    **dict.fromkeys(("MatMul", "MatMulInteger", "FusedMatMul", "Gemm"), _Pass.multiply),
    "Concat": _Pass.concat,
    "Constant": _Pass.value,
    "ConstantOfShape": _Pass.constant_of_shape,
    "DynamicQuantizeLinear": _Pass.quantize,
    "Expand": _Pass.expand,
    "Flatten": _Pass.flatten,
    "Gather": _Pass.gather,
    "Neg": _Pass.negative,
    "Range": _Pass.range,
    "ReduceMean": _Pass.reduce,
    "Reshape": _Pass.reshape,
    "Shape": _Pass.shape,
    "Slice": _Pass.slice,
    "Split": _Pass.split,
    "Squeeze": _Pass.squeeze,
    "Transpose": _Pass.transpose,
    "Unsqueeze": _Pass.unsqueeze,
    "Where": _Pass.where,
}
