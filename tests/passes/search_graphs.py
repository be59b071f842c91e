"""Graphs that search a bank for nearest neighbours, in the ways that exporters write it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

#: Ways to write `‖x‖² + ‖m‖² − 2 x·m`.
FORMS = ("later", "doubled-queries", "euclidean", "reversed", "cdist", "addmm", "negated")


@dataclass
class Search:
    """Distances of queries [batch, patches, width] (or [patches, width]) to a bank's rows."""

    form: str = "euclidean"
    rows: int = 11
    width: int = 5
    patches: int = 7
    batch: int | str | None = 2
    opset: int = 20
    rooted: bool = True
    clipped: bool = True
    keepdims: int = 0
    nearest: int = 0  # k of TopK; 0 is ReduceMin and ArgMin
    index: bool = True
    shift: float = 3.0
    seed: int = 0
    #: To be read as an output, too.
    outputs: tuple[str, ...] = ()
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        self.bank = (random.normal(size=(self.rows, self.width)) + self.shift).astype(np.float32)

    @property
    def axis(self):
        return 1 if self.batch is None else 2

    def queries(self, count=None):
        shape = [self.patches, self.width]
        if self.batch is not None:
            shape.insert(0, count or (2 if isinstance(self.batch, str) else self.batch))
        random = np.random.default_rng(self.seed + 1)
        return (random.normal(size=shape) + self.shift).astype(np.float32)

    def distances(self, queries):
        """All of them, in float64."""
        difference = queries.astype(np.float64)[..., None, :] - self.bank.astype(np.float64)
        squared = np.square(difference).sum(axis=-1)
        return np.sqrt(squared) if self.rooted else squared

    def tolerance(self, queries):
        """What rounding may change in a square or, of a root, in a square of it."""
        largest = np.square(queries).sum(axis=-1).max() + np.square(self.bank).sum(axis=1).max()
        return 1e-6 * self.width**0.5 * float(largest)

    def add(self, op, inputs, output, **options):
        self.nodes.append(helper.make_node(op, inputs, [output], f"{output}_node", **options))
        return output

    def reduce(self, op, source, output, keepdims):
        if op == "ReduceSum" or self.opset >= 18:
            return self.add(op, [source, "axes"], output, keepdims=keepdims)
        return self.add(op, [source], output, keepdims=keepdims, axes=[-1])

    def norms(self, output, keepdims):
        self.add("Mul", ["x", "x"], f"{output}_squares")
        return self.reduce("ReduceSum", f"{output}_squares", output, keepdims)

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def squared(self):
        """Add the nodes up to squared distances; the name of their tensor."""
        bank, norms = self.bank, np.square(self.bank).sum(axis=1)
        own = self.constant("own", norms)
        if self.form == "later":
            self.add("MatMul", ["x", self.constant("w", 2 * bank.T)], "p")
            return self.add("Sub", [own, "p"], "d")
        if self.form == "doubled-queries":
            self.add("Mul", [self.constant("two", np.float32(2)), "x"], "x2")
            self.add("MatMul", ["x2", self.constant("w", bank.T)], "p")
            self.add("Add", [self.norms("n", 1), own], "s")
            return self.add("Sub", ["s", "p"], "d")
        if self.form == "negated":
            self.add("MatMul", ["x", self.constant("w", 2 * bank.T)], "p")
            self.add("Neg", ["p"], "q")
            self.add("Add", ["q", own], "s")
            return self.add("Add", [self.norms("n", 1), "s"], "d")
        if self.form == "cdist":
            self.add("Mul", ["x", self.constant("m2", np.float32(-2))], "x2")
            self.constant("one", np.float32([1]))
            self.add("Shape", [self.norms("n", 1)], "shape")
            self.add("Expand", ["one", "shape"], "ones")
            self.add("Concat", ["x2", "n", "ones"], "wide", axis=-1)
            tall = np.concatenate([bank.T, np.ones_like(norms)[None], norms[None]])
            return self.add("MatMul", ["wide", self.constant("w", tall)], "d")
        if self.form == "addmm":
            self.add("Add", [own, self.norms("n", 1)], "s")
            self.constant("w", bank)
            return self.add("Gemm", ["x", "w", "s"], "d", alpha=-2.0, transB=1)
        self.add("MatMul", ["x", self.constant("w", bank.T)], "p")
        self.add("Mul", ["p", self.constant("m2", np.float32(-2))], "q")
        terms = [self.norms("n", 1), self.constant("own", norms[None])]
        if self.form == "reversed":
            terms.reverse()
        self.add("Add", ["q", terms[0]], "s")
        return self.add("Add", ["s", terms[1]], "d")

    def wrapped(self, name, end):
        steps = ["Clip"] * self.clipped + ["Sqrt"] * self.rooted
        for number, step in enumerate(steps):
            result = end if number == len(steps) - 1 else f"{end}_{number}"
            extra = [self.constant("zero", np.float32(0))] if step == "Clip" else []
            name = self.add(step, [name, *extra], result)
        return name

    def model(self):
        self.nodes, self.constants = [], {}
        self.constant("axes", np.array([-1]))
        name = self.squared()
        outputs = []
        later = self.form == "later"
        if not later:
            name = self.wrapped(name, "e")
        if self.nearest:
            count = self.constant("k", np.array([self.nearest]))
            outputs = ["v", *(["i"] if self.index else [])]
            names = [outputs[0], "i" if self.index else "unused"]
            node = helper.make_node("TopK", [name, count], names, "topk", axis=-1, largest=0)
            self.nodes.append(node)
            keepdims = 1
        else:
            outputs = [self.reduce("ReduceMin", name, "v", self.keepdims)]
            keepdims = self.keepdims
            if self.index:
                options = {"axis": self.axis, "keepdims": keepdims}
                outputs.append(self.add("ArgMin", [name], "i", **options))
        if later:
            self.add("Add", ["v", self.norms("n", keepdims)], "t")
            outputs[0] = self.wrapped("t", "y")
        self.values = outputs[0]
        shape = [self.patches, self.width]
        if self.batch is not None:
            shape.insert(0, self.batch)
        types = {"i": TensorProto.INT64}
        graph = helper.make_graph(
            self.nodes,
            "search",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(each, types.get(each, TensorProto.FLOAT), None)
                for each in (*outputs, *self.outputs)
            ],
            [
                numpy_helper.from_array(np.ascontiguousarray(value), name)
                for name, value in self.constants.items()
            ],
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        model = onnx.shape_inference.infer_shapes(
            model, data_prop=True
        )  # the outputs' shapes, which it needs
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model


def run(model, queries):
    """Outputs by name, of ONNX Runtime without its own rewrites."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": queries}), strict=True))
