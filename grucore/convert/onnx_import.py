"""From ONNX: the GRU nodes of a file as one layer.

Reads stacks of GRU layers as `to_onnx`, torch.onnx.export and others write them: GRU nodes that each read the output of
the one before, with the directions concatenated. `onnx_operator.py` describes the operator.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from grucore.convert import onnx_operator
from grucore.convert.weights import gru_of, reading, require, swap_gates, to_tensor
from grucore.errors import InputError, check_flag
from grucore.module import GRU
from grucore.options import Activation

_STANDARD = ("", "ai.onnx")  # the domain of ONNX's own operators
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


def from_onnx(source: Any, node: str | None = None, *, batch_first: bool | None = None, reverse: bool = False) -> GRU:
    """Converts a stack of GRU nodes to a layer, exactly.

    Initial states and lengths are not part of the layer: pass them in the call, as `hx` (K*D, B, H), even for layout=1,
    and `lengths`.

    The weights must be constants of the file: initializers (also those that are default values of graph inputs), nodes,
    or values computed only from these, which torch.onnx.export leaves in large models.

    A stack with direction="reverse" runs from the last step to the first, a unidirectional grucore layer from the first
    to the last. The result therefore needs a reversed sequence: `y, h_n = gru(x.flip(0), hx)`, then `y.flip(0)`
    (dimension 1 if batch_first). With lengths call `gru(x.flip(0), hx, mask=mask.flip(0))`, where mask (T, B) is True
    for the steps before each row's length.

    Args:
        source: the path of an ONNX file, or an onnx.ModelProto.
        node: the name of the last GRU node of the stack; None if there is only one stack. Nodes that read each other
            but differ in hidden_size, direction, linear_before_reset or activations are stacks of their own.
        batch_first: of the layer. None means True if the stack reads (B, T, I): with layout=1, or by swapping the first
            two dimensions directly before it.
        reverse: must be True for a stack with direction="reverse", and False otherwise.

    Returns:
        A layer on the CPU with the dtype of the weights.

    Raises:
        ImportError: onnx is not installed.
        TypeError: source is none of the above, or a flag is not a bool.
        InputError: a damaged file; no such stack; weights that are not constants; an attribute that cannot be
            converted, such as clip; an activation that grucore lacks; a constant initial state other than 0; a
            direction that contradicts `reverse`.

    Example:
        >>> from tempfile import mkdtemp
        >>> from grucore.convert import to_onnx
        >>> path = os.path.join(mkdtemp(), "model.onnx")
        >>> to_onnx(GRU(3, 4, reset_after=False), path)
        >>> from_onnx(path)
        GRU(3, 4, reset_after=False)
    """
    check_flag("reverse", reverse)
    if batch_first is not None:
        check_flag("batch_first", batch_first)
    onnx = require("onnx", "onnx")
    if not isinstance(source, (str, os.PathLike, onnx.ModelProto)):
        raise TypeError(f"expected a path or an onnx.ModelProto, got {type(source).__name__}")
    with reading("the model" if isinstance(source, onnx.ModelProto) else os.fspath(source)):
        model = source if isinstance(source, onnx.ModelProto) else onnx.load(os.fspath(source))
        groups, own, swapped = _read(_Graph(model, onnx), node, reverse)
    return gru_of(
        groups,
        bidirectional=own.direction == "bidirectional",
        reset_after=bool(own.linear_before_reset),
        batch_first=swapped if batch_first is None else batch_first,
        activation=own.activation,
        recurrent_activation=own.recurrent_activation,
    )


def _read(graph: _Graph, node: str | None, reverse: bool) -> tuple[list[list[Tensor]], _Options, bool]:
    """The weights of a stack, its options, and whether it reads (B, T, I)."""
    stack = graph.stack(node)
    own = graph.options(stack[0])
    if (own.direction == "reverse") != reverse:
        what = (
            "reverse=True is only for 'reverse'"
            if reverse
            else "reverse=True converts it to a layer that computes the same on a reversed sequence, "
            "gru(x.flip(0), hx)[0].flip(0)"
        )
        raise InputError(f"{_names(stack)} has direction={own.direction!r}: {what}")
    if len({graph.lengths(each) for each in stack}) > 1:
        raise InputError(f"{_names(stack)} have different sequence_lens; the layers of a stack have the same")
    groups = []
    for each in stack:
        graph.check_state_and_lengths(each, stack)
        groups += graph.weights(each, 2 if own.direction == "bidirectional" else 1)
    return groups, own, graph.reads_batch_first(stack[0])


class _Options(NamedTuple):
    """A layer's options in a node's attributes."""

    direction: str
    linear_before_reset: int
    recurrent_activation: Activation
    activation: Activation


class _Graph:
    """A graph and the producers of its values."""

    def __init__(self, model: Any, onnx: Any) -> None:
        graph, self.onnx = model.graph, onnx
        self.opsets = {each.domain: each.version for each in model.opset_import}
        self.nodes = {id(node): node for node in graph.node if node.op_type == "GRU" and node.domain in _STANDARD}
        self.others = sorted({node.op_type for node in graph.node if node.op_type in ("LSTM", "RNN")})
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.computed: dict[str, np.ndarray] = {}
        self._check_order(graph.node)
        self.dependent = set(self.inputs - self.initializers.keys())  # on the inputs of the graph
        for node in graph.node:
            given = [name for name in node.input if name]
            is_source = not given and node.op_type != "Constant"  # as of random numbers
            if is_source or node.domain not in _STANDARD or not self.dependent.isdisjoint(given):
                self.dependent.update(node.output)

    def _check_order(self, nodes: Any) -> None:
        """Raises for values that are read before they are computed, or computed twice: searches would not end."""
        made: set[str] = set()
        for node in nodes:
            late = [name for name in node.input if name in self.producers and name not in made]
            if wrong := [*late, *made.intersection(node.output)]:
                raise InputError(
                    f"the file's nodes must be in topological order, with one producer per value: "
                    f"{node.op_type} node {node.name!r} violates this with {wrong[0]!r}"
                )
            made.update(name for name in node.output if name)

    def attributes(self, node: Any) -> dict[str, Any]:
        """Attributes by name; text as str."""
        values = {each.name: self.onnx.helper.get_attribute_value(each) for each in node.attribute}
        return {name: _decoded(value) for name, value in values.items()}

    def constant(self, name: str) -> np.ndarray | None:
        """The value of that name, None if it depends on inputs of the graph."""
        if name in self.initializers:
            return self.onnx.numpy_helper.to_array(self.initializers[name])
        producer = self.producers.get(name)
        if producer is not None and name not in self.computed and name not in self.dependent:
            inputs = {each: self.constant(each) for each in producer.input if each}
            if all(value is not None for value in inputs.values()):
                evaluator = require("onnx.reference", "onnx").ReferenceEvaluator(producer, opsets=self.opsets)
                outputs = evaluator.run(None, inputs)
                self.computed |= zip(producer.output, map(np.asarray, outputs), strict=True)
        return self.computed.get(name)

    def stack(self, name: str | None) -> list[Any]:
        """The nodes from the first layer to the named one, or those of the only stack."""
        before = {key: self.layer_before(node) for key, node in self.nodes.items()}
        inner = {id(node) for node in before.values() if node is not None}
        if name is None:
            last = [node for key, node in self.nodes.items() if key not in inner]
            if len(last) != 1:
                none = f"none; its recurrent nodes are {', '.join(self.others)}" if self.others else "none"
                have = f"{len(last)}, which end with {_names(last)}: pass one of these as `node`" if last else none
                raise InputError(f"the file must have one stack of GRU nodes, but has {have}")
        else:
            last = [node for node in self.nodes.values() if node.name == name]
            if len(last) != 1:
                raise InputError(f"the file must have one GRU node {name!r}; it has {_names(self.nodes.values())}")
        stack = [last[0]]
        while (node := before[id(stack[0])]) is not None:
            stack.insert(0, node)
        return stack

    def layer_before(self, node: Any) -> Any:
        """The GRU node of the same size and options whose concatenated directions this one reads; None without one."""
        moves: list[Any] = []
        name = node.input[0]
        while (producer := self.producers.get(name)) is not None and producer.op_type in _LAYOUT:
            moves.insert(0, producer)
            name = producer.input[0]
        if producer is None or id(producer) not in self.nodes or name != producer.output[0]:
            return None
        (width, units), (_, own_units) = self._width(producer), self._width(node)
        if units != own_units or self.options(producer) != self.options(node):
            return None  # a layer of its own
        axes = ["B", "T", "D", "H"] if self.layout(producer) else ["T", "D", "B", "H"]
        for move in moves:
            axes = self._moved(axes, move, width)
        return producer if axes == (["B", "T", "DH"] if self.layout(node) else ["T", "B", "DH"]) else None

    def _width(self, node: Any) -> tuple[int, int]:
        """D*H and H by a node's weights, 0 where these are not constant."""
        recurrent = self.constant(node.input[2]) if len(node.input) > 2 else None  # (D, 3H, H)
        if recurrent is None or recurrent.ndim != 3:
            return 0, 0
        return recurrent.shape[0] * recurrent.shape[2], recurrent.shape[2]

    def layout(self, node: Any) -> int:
        """0 if a node reads (T, B, I) and gives (T, D, B, H), 1 if it reads (B, T, I) and gives (B, T, D, H)."""
        return self.attributes(node).get("layout", 0)

    def _moved(self, axes: list[str], node: Any, width: int) -> list[str]:
        """The axes after an operator; "DH" is D and H merged, of that width. Empty if unknown."""
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
        merges = node.op_type == "Reshape" and axes[2:] == ["D", "H"]
        if merges and (self._keeps_two(node) or (len(numbers) == 3 and (numbers[:2] == [0, 0] or numbers[2] == width))):
            return [*axes[:2], "DH"]  # 0 keeps a dimension
        return []

    def _keeps_two(self, reshape: Any) -> bool:
        """Whether the shape is a concatenation of the first two sizes of what is reshaped, and a third number."""
        shape = self.producers.get(reshape.input[1])
        if shape is None or shape.op_type != "Concat" or len(shape.input) != 3:
            return False
        for i, name in enumerate(shape.input[:2]):
            part = self.producers.get(name)
            if part is None or part.op_type != "Slice" or len(part.input) < 3:
                return False
            sizes, ends = self.producers.get(part.input[0]), [self.constant(each) for each in part.input[1:3]]
            if sizes is None or sizes.op_type != "Shape" or sizes.input[0] != reshape.input[0]:
                return False
            if [None if end is None else end.tolist() for end in ends] != [[i], [i + 1]]:
                return False
        return True

    def reads_batch_first(self, node: Any) -> bool:
        """Whether a node's input is (B, T, I), perhaps swapped directly before it."""
        producer = self.producers.get(node.input[0])
        while producer is not None and producer.op_type == "Identity":
            producer = self.producers.get(producer.input[0])
        swapped = (
            producer is not None
            and producer.op_type == "Transpose"
            and self.attributes(producer).get("perm") == [1, 0, 2]
        )
        return swapped != bool(self.layout(node))

    def options(self, node: Any) -> _Options:
        """The options in the attributes; raises for those that cannot be converted."""
        given = self.attributes(node)
        direction = given.pop("direction", "forward")
        linear_before_reset = given.pop("linear_before_reset", 0)
        for name in ("hidden_size", "layout"):
            given.pop(name, None)
        if linear_before_reset not in (0, 1):
            raise InputError(f"{_names([node])} has linear_before_reset={linear_before_reset}: expected 0 or 1")
        if direction not in ("forward", "reverse", "bidirectional"):
            raise InputError(f"{_names([node])} has direction={direction!r}, which ONNX does not define")
        directions = 2 if direction == "bidirectional" else 1
        activations = onnx_operator.read_activations(given, _names([node]), directions)
        if len(set(activations)) > 1:
            raise InputError(f"{_names([node])} has different activations per direction, which cannot be converted")
        own = {name: value for name, value in given.items() if not name.startswith("activation")}
        if own := {name: value for name, value in own.items() if value not in (0, []) or name == "clip"}:
            raise InputError(f"{_names([node])} has {own}, which cannot be converted")
        return _Options(direction, linear_before_reset, *activations[0])

    def weights(self, node: Any, directions: int) -> list[list[Tensor]]:
        """(w_ih, w_hh[, b_ih, b_hh]) of each direction."""
        names = [name for name in node.input[1:4] if name]
        arrays = {name: self.constant(name) for name in names}
        missing = [name for name, array in arrays.items() if array is None]
        if given := [name for name in missing if name in self.inputs]:
            raise InputError(
                f"{_names([node])} must have constant weights, but {', '.join(map(repr, given))} are inputs of the "
                "graph without a value: add initializers of the same names"
            )
        if missing:
            raise InputError(
                f"{_names([node])} must have constant weights, but {', '.join(map(repr, missing))} depend on inputs of "
                "the graph"
            )
        if len(names) < 2:
            raise InputError(f"{_names([node])} must have weights W and R, but has {names}")
        w, r, *b = (to_tensor(arrays[name]) for name in names)
        hidden = r.shape[-1]
        shapes = [tuple(each.shape) for each in (w, r, *b)]
        expected = [(directions, 3 * hidden, w.shape[-1]), (directions, 3 * hidden, hidden), (directions, 6 * hidden)]
        if shapes != expected[: len(shapes)]:
            raise InputError(f"{_names([node])} must have weights of shapes {expected[: len(shapes)]}, got {shapes}")
        if (said := self.attributes(node).get("hidden_size", hidden)) != hidden:
            raise InputError(f"{_names([node])} has hidden_size={said}, but weights of {hidden} units")
        biases = [each.chunk(2, 1) for each in b]
        kinds = [w, r, *(half for halves in biases for half in halves)]
        return [[swap_gates(kind[d]) for kind in kinds] for d in range(directions)]

    def lengths(self, node: Any) -> str:
        """The name of a node's sequence_lens before any change of dtype, "" for none."""
        name = [*node.input[4:5], ""][0]
        while (producer := self.producers.get(name)) is not None and producer.op_type in ("Cast", "Identity"):
            name = producer.input[0]
        return name

    def check_state_and_lengths(self, node: Any, stack: list[Any]) -> None:
        """Raises for constant lengths and states other than 0, which no layer stores, and states of the same stack."""
        lengths, state = [*node.input[4:6], "", ""][:2]
        if lengths and self._origin(lengths) is not None:
            raise InputError(f"{_names([node])} has constant sequence_lens; in grucore lengths are passed in the call")
        if state and (value := self._origin(state)) is not None and value.any():
            raise InputError(
                f"{_names([node])} has a constant initial_h other than 0; in grucore hx is passed in the call"
            )
        while (producer := self.producers.get(state)) is not None and producer.op_type in _MOVES:
            state = producer.input[0]
        if producer is not None and any(producer is each for each in stack):
            raise InputError(
                f"{_names([node])} begins from the state of {_names([producer])}, which is of the same stack: a "
                "grucore layer has all its initial states from outside"
            )

    def _origin(self, name: str) -> np.ndarray | None:
        """The constant whose elements a value consists of, None if it is computed or an input."""
        while (value := self.constant(name)) is None:
            producer = self.producers.get(name)
            if producer is None or producer.op_type not in (*_MOVES, "ConstantOfShape"):
                return None
            if producer.op_type == "Gather" and producer.input[1] in self.dependent:  # as in an embedding
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
