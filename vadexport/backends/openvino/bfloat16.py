"""Graphs that compute in bfloat16 in part, and processors that have no fast way to."""

from typing import TYPE_CHECKING

from vadexport.backends.openvino.compiler import version

if TYPE_CHECKING:
    import openvino


def has_fast_bfloat16(core: "openvino.Core | None" = None) -> bool:
    """Whether this processor multiplies in bfloat16 (AVX512-BF16, AMX).

    Args:
        core: OpenVINO's; None for a new one.

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    version()
    import openvino

    found = (core or openvino.Core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in found


def widen(model: "openvino.Model") -> None:
    """Let what would compute in bfloat16 compute in float32; weights stay as they were rounded.

    OpenVINO does that by itself on processors without AVX-512; on those with it, it would emulate
    bfloat16, which is slower than float32.
    """
    import openvino
    from openvino import opset13

    narrow, full = openvino.Type.bf16, openvino.Type.f32
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convert" and node.get_output_element_type(0) == narrow:
            node.set_attribute("destination_type", "f32")
        elif node.get_type_name() == "Constant" and node.get_output_element_type(0) == narrow:
            weights = opset13.convert(node, full)
            for reader in node.output(0).get_target_inputs():
                if reader.get_node() != weights:
                    reader.replace_source_output(weights.output(0))
    model.validate_nodes_and_infer_types()


def computes_in_bfloat16(model: "openvino.Model") -> bool:
    """Whether part of a graph is written so."""
    import openvino

    return any(
        output.get_element_type() == openvino.Type.bf16
        for node in model.get_ops()
        for output in node.outputs()
    )
