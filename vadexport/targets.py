"""Targets: backend, precision and device, written `openvino:int8` or `tensorrt-rtx:fp16@sm86`."""

import re
from dataclasses import dataclass
from typing import Final, Self

from vadexport.errors import InputError

_SYNTAX: Final = re.compile(
    r"(?P<backend>[a-z][a-z0-9-]*):(?P<precision>[a-z][a-z0-9]*)(@(?P<device>[a-z0-9+]+))?"
)

#: The backend's fastest precision whose scores hold; `build` finds it.
AUTO: Final = "auto"
#: Precisions that each backend can be asked for, in the order they are listed to users.
PRECISIONS: Final[dict[str, tuple[str, ...]]] = {
    "openvino": ("fp32", "int8", AUTO),
    "onnxruntime": ("fp32", "int8", AUTO),
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "int8"),
}
#: Each of them once.
ALL_PRECISIONS: Final = ("fp32", "fp16", "int8", AUTO)
#: ONNX Runtime on an NVIDIA GPU.
CUDA: Final = "cuda"
_CUDA_PRECISIONS: Final = ("fp32", "fp16", "int8")
#: Processors with AVX2 or AVX-512 but without VNNI, whose INT8 products OpenVINO adds in int16.
AVX2: Final = "avx2"
_AVX2_PRECISIONS: Final = ("int8",)
#: NVIDIA's GPU generations that TensorRT-RTX compiles for: Turing, Ampere (data centre, desktop),
#: Ada Lovelace, Blackwell.
COMPUTE_CAPABILITIES: Final = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


@dataclass(frozen=True, order=True)
class Target:
    """What a detector is compiled for.

    Attributes:
        backend: such as `openvino`.
        precision: of the network (the backbone); the score head stays in float32, but for the
            search of a large memory bank in INT8 targets of processors, and Mahalanobis distances
            in bfloat16 in those of OpenVINO. `auto` is INT8 but for layers that cost scores, on
            processors; of TensorRT, it comes to the lowest precision whose scores hold.
        device: `cuda` for ONNX Runtime on an NVIDIA GPU; `avx2` for INT8 in OpenVINO on processors
            without VNNI, where it is built on another one; for TensorRT-RTX the GPU generations of
            the engine, joined by `+`; empty is the processor, the GPU at hand (TensorRT), or all
            generations from Ampere on (TensorRT-RTX).
    """

    backend: str
    precision: str
    device: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `backend:precision[@device]`.

        Raises:
            InputError: the text has another form, or names a target that does not exist.
        """
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise InputError(
                f"target {text!r} is not of the form backend:precision[@device]; {_known()}"
            )
        found = {key: value or "" for key, value in match.groupdict().items()}
        target = cls(**found)
        if target.backend == "tensorrt" and target.device:
            raise InputError(
                f"target {text!r} names {target.device}, and TensorRT builds for the GPU at hand: "
                "leave @… out, or build for tensorrt-rtx:…, which needs none"
            )
        if target.precision not in _precisions(target.backend, target.device):
            raise InputError(f"unknown target {text!r}; {_known()}")
        if target.backend == "tensorrt-rtx":
            return cls(target.backend, target.precision, _generations(target.device, text))
        return target

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self.backend.startswith("tensorrt") or self.device == CUDA

    @property
    def mixed(self) -> bool:
        """Whether a search chooses which of its layers are INT8."""
        return self.precision == AUTO and not self.on_gpu

    @property
    def folder(self) -> str:
        """Name of the target's folder in a build of several targets."""
        device = f"-{self.device.replace('+', '-')}" if self.device else ""
        return f"{self.backend}-{self.precision}{device}"

    def __str__(self) -> str:
        return f"{self.backend}:{self.precision}{'@' if self.device else ''}{self.device}"


def all_targets() -> list[Target]:
    """Every target that this version knows, whether or not its package is installed.

    Those of TensorRT-RTX stand without the GPU generations that can be added.
    """
    found = [Target(b, p) for b, precisions in PRECISIONS.items() for p in precisions]
    others = [Target("openvino", precision, AVX2) for precision in _AVX2_PRECISIONS]
    others += [Target("onnxruntime", precision, CUDA) for precision in _CUDA_PRECISIONS]
    after = found.index(Target("onnxruntime", AUTO)) + 1
    return [*found[:after], *others, *found[after:]]


def _precisions(backend: str, device: str) -> tuple[str, ...]:
    """Those that the backend has on the device; none where it does not know the device."""
    if backend in ("tensorrt", "tensorrt-rtx"):
        return (*PRECISIONS[backend], AUTO)
    if backend == "onnxruntime" and device == CUDA:
        return _CUDA_PRECISIONS
    if backend == "openvino" and device == AVX2:
        return _AVX2_PRECISIONS
    return () if device else PRECISIONS.get(backend, ())


def _generations(device: str, text: str) -> str:
    """GPU generations in their own order; raises InputError where one is not known."""
    wanted = device.split("+") if device else []
    unknown = next((each for each in wanted if each not in COMPUTE_CAPABILITIES), None)
    if unknown is not None or len(set(wanted)) < len(wanted):
        fault = f"names {unknown}" if unknown is not None else "names a GPU generation twice"
        raise InputError(
            f"target {text!r} {fault}: TensorRT-RTX compiles for "
            f"{', '.join(COMPUTE_CAPABILITIES)}, several joined by +, or without @ for all from "
            "Ampere on"
        )
    return "+".join(each for each in COMPUTE_CAPABILITIES if each in wanted)


def _known() -> str:
    return "known targets: " + ", ".join(map(str, all_targets()))
