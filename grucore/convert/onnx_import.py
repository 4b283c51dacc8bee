"""From ONNX: the GRU nodes of a file as one layer.

Reads what `to_onnx`, torch.onnx.export and others write for a stack of GRU layers: GRU nodes, each of which reads what
the one before it gives, with the directions side by side. The meaning of the operator is in `onnx_operator.py`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor

from grucore.convert.weights import gru_of, require, swap_gates, to_tensor
from grucore.errors import InputError
from grucore.module import GRU

# Operators between two layers of a stack.
_LAYOUT = ("Identity", "Reshape", "Squeeze", "Transpose")
# Operators that move the values of their first input without changing them.
_MOVES = (
    "Cast",
    "Expand",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)


def from_onnx(source: Any, node: str | None = None, *, batch_first: bool | None = None) -> GRU:
    """A copy of a stack of GRU nodes; exact.

    Initial states and lengths that the file computes or takes are the caller's to give: `hx` and `lengths`.

    Args:
        source: the path of an ONNX file, or an onnx.ModelProto.
        node: the name of the last GRU node of the stack; None if there is one stack.
        batch_first: of the layer; None: True if the file swaps the first two dimensions right before the stack.

    Returns:
        A layer with the dtype of the weights, on the CPU.

    Raises:
        ImportError: onnx is not installed.
        TypeError: source is none of the above.
        ValueError: no such stack; weights that are no constants; an attribute that cannot be converted, as clip,
            activations other than sigmoid and tanh, direction="reverse" and layout=1; a constant initial state other
            than 0.

    Example:
        >>> from tempfile import mkdtemp
        >>> from grucore.convert import to_onnx
        >>> path = os.path.join(mkdtemp(), "model.onnx")
        >>> to_onnx(GRU(3, 4, reset_after=False), path)
        >>> from_onnx(path)
        GRU(3, 4, reset_after=False)
    """
    onnx = require("onnx", "onnx")
    if isinstance(source, (str, os.PathLike)):
        source = onnx.load(os.fspath(source))
    if not isinstance(source, onnx.ModelProto):
        raise TypeError(f"expected a path or an onnx.ModelProto, got {type(source).__name__}")
    graph = _Graph(source.graph, onnx)
    stack = graph.stack(node)
    options = [graph.options(each) for each in stack]
    if len(set(options)) > 1:
        raise InputError(
            f"the GRU nodes of a stack must agree in (direction, linear_before_reset), got {options} of {_names(stack)}"
        )
    direction, linear_before_reset = options[0]
    groups = []
    for each in stack:
        graph.check_state_and_lengths(each)
        groups += graph.weights(each, 2 if direction == "bidirectional" else 1)
    if batch_first is None:
        batch_first = graph.swaps_before(stack[0])
    return gru_of(
        groups,
        bidirectional=direction == "bidirectional",
        reset_after=bool(linear_before_reset),
        batch_first=batch_first,
    )


class _Graph:
    """A graph, and where each of its values comes from."""

    def __init__(self, graph: Any, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes = {id(node): node for node in graph.node if node.op_type == "GRU" and node.domain in ("", "ai.onnx")}
        self.others = sorted({node.op_type for node in graph.node if node.op_type in ("LSTM", "RNN")})
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}

    def attributes(self, node: Any) -> dict[str, Any]:
        """Attributes by name; text as str."""
        values = {each.name: self.onnx.helper.get_attribute_value(each) for each in node.attribute}
        return {name: _decoded(value) for name, value in values.items()}

    def constant(self, name: str) -> np.ndarray | None:
        """The value of that name, None if it is no constant."""
        if name in self.initializers:
            return self.onnx.numpy_helper.to_array(self.initializers[name])
        producer = self.producers.get(name)
        if producer is not None and producer.op_type == "Identity":
            return self.constant(producer.input[0])
        if producer is None or producer.op_type != "Constant":
            return None
        (value,) = self.attributes(producer).values()
        return self.onnx.numpy_helper.to_array(value) if isinstance(value, self.onnx.TensorProto) else np.array(value)

    def stack(self, name: str | None) -> list[Any]:
        """The nodes from the first layer to the one of that name, or of the only stack."""
        before = {key: self.layer_before(node) for key, node in self.nodes.items()}
        inner = {id(node) for node in before.values() if node is not None}
        if name is None:
            last = [node for key, node in self.nodes.items() if key not in inner]
            if len(last) != 1:
                none = f"none; its recurrent nodes are {', '.join(self.others)}" if self.others else "none"
                have = f"{len(last)}, which end with {_names(last)}: say which in `node`" if last else none
                raise InputError(f"the file must have one stack of GRU nodes, and has {have}")
        else:
            last = [node for node in self.nodes.values() if node.name == name]
            if len(last) != 1:
                raise InputError(f"the file must have one GRU node {name!r}; it has {_names(self.nodes.values())}")
        stack = [last[0]]
        while (node := before[id(stack[0])]) is not None:
            stack.insert(0, node)
        return stack

    def layer_before(self, node: Any) -> Any:
        """The GRU node whose directions side by side are this one's input; None if it reads something else."""
        moves: list[Any] = []
        name = node.input[0]
        while (producer := self.producers.get(name)) is not None and producer.op_type in _LAYOUT:
            moves.insert(0, producer)
            name = producer.input[0]
        if producer is None or id(producer) not in self.nodes or name != producer.output[0]:
            return None
        axes = ["T", "D", "B", "H"]
        for move in moves:
            axes = self._moved(axes, move)
        return producer if axes == ["T", "B", "DH"] else None

    def _moved(self, axes: list[str], node: Any) -> list[str]:
        """The axes after an operator: "DH" is one axis made of two, or H where D was 1. Empty if unknown."""
        attributes = self.attributes(node)
        if node.op_type == "Identity":
            return axes
        if node.op_type == "Transpose":
            perm = attributes.get("perm", [])
            return [axes[i] for i in perm] if sorted(perm) == list(range(len(axes))) else []
        # A list is an input in newer opsets and an attribute in older ones.
        given = self.constant(node.input[1]) if len(node.input) > 1 else attributes.get("axes")
        numbers = [] if given is None else [int(i) for i in np.ravel(given)]
        if node.op_type == "Squeeze" and len(numbers) == 1 and len(axes) == 4 and axes[numbers[0]] == "D":
            return ["DH" if axis == "H" else axis for axis in axes if axis != "D"]
        if node.op_type == "Reshape" and axes == ["T", "B", "D", "H"] and len(numbers) == 3 and numbers[:2] == [0, 0]:
            return ["T", "B", "DH"]  # 0 keeps a dimension
        return []

    def swaps_before(self, node: Any) -> bool:
        """Whether (B, T, I) is made (T, B, I) right before a node."""
        producer = self.producers.get(node.input[0])
        while producer is not None and producer.op_type == "Identity":
            producer = self.producers.get(producer.input[0])
        return (
            producer is not None
            and producer.op_type == "Transpose"
            and self.attributes(producer).get("perm") == [1, 0, 2]
        )

    def options(self, node: Any) -> tuple[str, int]:
        """Direction and linear_before_reset; refuses attributes that cannot be converted."""
        given = self.attributes(node)
        direction = given.pop("direction", "forward")
        linear_before_reset = given.pop("linear_before_reset", 0)
        given.pop("hidden_size", None)
        if direction not in ("forward", "bidirectional"):
            raise ValueError(
                f"{_names([node])} has direction={direction!r}; only 'forward' and 'bidirectional' can be converted"
            )
        activations = [name.lower() for name in given.pop("activations", [])]
        if activations not in ([], ["sigmoid", "tanh"], ["sigmoid", "tanh"] * 2):
            raise ValueError(f"{_names([node])} has activations={activations}; only sigmoid and tanh can be converted")
        if own := {name: value for name, value in given.items() if value not in (0, []) or name == "clip"}:
            raise ValueError(f"{_names([node])} has {own}, which cannot be converted")
        return direction, linear_before_reset

    def weights(self, node: Any, directions: int) -> list[list[Tensor]]:
        """(w_ih, w_hh[, b_ih, b_hh]) of each direction."""
        names = [name for name in node.input[1:4] if name]
        arrays = [self.constant(name) for name in names]
        if len(arrays) < 2 or any(array is None for array in arrays):
            missing = [name for name, array in zip(names, arrays, strict=True) if array is None]
            raise InputError(
                f"{_names([node])} must have constant weights W, R and B; {missing} are computed or inputs"
            )
        w, r, *b = (to_tensor(array) for array in arrays)
        hidden = r.shape[-1]
        shapes = [tuple(each.shape) for each in (w, r, *b)]
        expected = [(directions, 3 * hidden, w.shape[-1]), (directions, 3 * hidden, hidden), (directions, 6 * hidden)]
        if shapes != expected[: len(shapes)]:
            raise InputError(f"{_names([node])} must have weights of shapes {expected[: len(shapes)]}, got {shapes}")
        biases = [each.chunk(2, 1) for each in b]
        kinds = [w, r, *(half for halves in biases for half in halves)]
        return [[swap_gates(kind[d]) for kind in kinds] for d in range(directions)]

    def check_state_and_lengths(self, node: Any) -> None:
        """Refuses constant lengths, and a constant initial state other than 0: here both are a call's to give."""
        lengths, state = [*node.input[4:6], "", ""][:2]
        if lengths and self._origin(lengths) is not None:
            raise ValueError(f"{_names([node])} has constant sequence_lens; in grucore lengths are given in the call")
        if state and (value := self._origin(state)) is not None and value.any():
            raise ValueError(
                f"{_names([node])} has a constant initial_h other than 0; in grucore hx is given in the call"
            )

    def _origin(self, name: str) -> np.ndarray | None:
        """The constant of whose values a value is made, None if it is computed or given."""
        while (value := self.constant(name)) is None:
            producer = self.producers.get(name)
            if producer is None or producer.op_type not in (*_MOVES, "ConstantOfShape"):
                return None
            if producer.op_type == "ConstantOfShape":
                filled = self.attributes(producer).get("value")
                return np.zeros(1) if filled is None else self.onnx.numpy_helper.to_array(filled)
            name = producer.input[0]
        return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def _names(nodes: Any) -> str:
    return ", ".join(f"GRU node {node.name!r}" for node in nodes) or "none"
