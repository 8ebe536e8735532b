"""An ONNX graph for rewriting: which node makes a value, which nodes read it, what is constant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

MICROSOFT = "com.microsoft"


class OnnxGraph:
    """A model's main graph with its values indexed by name. Call `index` again after a rewrite."""

    def __init__(self, path: Path) -> None:
        """Read the model at `path`, including its weights."""
        self.model = onnx.load(str(path))
        self.graph = self.model.graph
        self.index()

    def index(self) -> None:
        """Remove unused nodes, sort the rest, and record which nodes make and read each value."""
        self._prune()
        self._sort()
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker: dict[str, NodeProto] = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def nodes(self, *operators: str) -> list[NodeProto]:
        """Return the nodes of these operators, in order."""
        return [node for node in self.graph.node if node.op_type in operators]

    def weight(self, name: str) -> NDArray[Any] | None:
        """Return the constant of this name, or None if the value is computed."""
        return numpy_helper.to_array(self.weights[name]) if name in self.weights else None

    def add_weight(self, name: str, values: NDArray[Any]) -> str:
        """Store a constant, once, and return its name."""
        if name not in self.weights:
            self.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
            self.weights[name] = self.graph.initializer[-1]
        return name

    def add(
        self, operator: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: Any
    ) -> NodeProto:
        """Append a node; `index` sorts it. Its first output has its name."""
        outputs = list(outputs)
        node = helper.make_node(operator, list(inputs), outputs, name=outputs[0], domain=domain, **attributes)
        self.graph.node.append(node)
        return node

    def remove(self, node: NodeProto) -> None:
        """Remove a node."""
        self.graph.node.remove(node)

    def reread(self, old: str, new: str) -> None:
        """Make every reader of `old` read `new`."""
        for node in self.readers[old]:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def save(self, path: Path, *, weights_apart: bool = False) -> None:
        """Write the model, with only the operator sets that it uses.

        `weights_apart` puts the weights into <path>.data, from where ONNX Runtime maps them into memory. Weights that
        it rearranges are then held only once, and of a table of tokens only the rows that are read.
        """
        self.index()
        used = {node.domain for node in self.graph.node} | {""}
        kept = [entry for entry in self.model.opset_import if entry.domain in used]
        if MICROSOFT in used and MICROSOFT not in {entry.domain for entry in kept}:
            kept.append(helper.make_opsetid(MICROSOFT, 1))
        del self.model.opset_import[:]
        self.model.opset_import.extend(kept)
        del self.graph.value_info[:]
        if weights_apart:
            data = path.with_name(f"{path.name}.data")
            data.unlink(missing_ok=True)  # onnx would append to it
            onnx.save(self.model, str(path), save_as_external_data=True, location=data.name)
            data.chmod(path.stat().st_mode & 0o777)
        else:
            onnx.save(self.model, str(path))

    def _prune(self) -> None:
        wanted = {output.name for output in self.graph.output}
        kept = []
        makers = {name: node for node in self.graph.node for name in node.output if name}
        queue = list(wanted)
        seen: set[int] = set()
        while queue:
            node = makers.get(queue.pop())
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                kept.append(node)
                queue += node.input
        order = [node for node in self.graph.node if id(node) in seen]
        del self.graph.node[:]
        self.graph.node.extend(order)
        wanted |= {name for node in order for name in node.input}
        constants = [tensor for tensor in self.graph.initializer if tensor.name in wanted]
        if len(constants) != len(self.graph.initializer):
            del self.graph.initializer[:]
            self.graph.initializer.extend(constants)

    def _sort(self) -> None:
        known = {tensor.name for tensor in self.graph.initializer} | {value.name for value in self.graph.input} | {""}
        waiting, order = list(self.graph.node), []
        while waiting:
            later = []
            for node in waiting:
                if known.issuperset(node.input):
                    order.append(node)
                    known.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise ValueError("the graph has a cycle")
            waiting = later
        del self.graph.node[:]
        self.graph.node.extend(order)
