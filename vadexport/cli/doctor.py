"""`vadexport doctor`."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click

from vadexport import __version__
from vadexport.backends.base import available_threads
from vadexport.backends.child import Child
from vadexport.backends.openvino.saturation import adds_exactly
from vadexport.backends.registry import get_backend
from vadexport.cli.console import Console, columns
from vadexport.cli.options import console_options, json_option
from vadexport.errors import MissingPackageError, VadexportError
from vadexport.machine import processor_name
from vadexport.targets import PRECISIONS, Target, all_targets

#: What else vadexport works with: module, what for, and the pip extra that brings it, if any.
_HELPERS = {
    "torch": ("fit, build, verify", None),
    "onnx": ("graphs", None),
    "jinja2": ("HTML reports", "report"),
    "timm": ("backbones of timm", "timm"),
    "diffusers": ("fit diffusion", "diffusion"),
    "pydicom": ("DICOM images", "dicom"),
}
#: Of them those that need torchvision's operators, of which torch knows only if it fits.
_ON_TORCHVISION = ("timm", "diffusers")
#: Backend and device of targets.
Device = tuple[str, str]
#: A disk that is read for the first time takes its time; an import that hangs must end.
_IMPORT_TIMEOUT_S = 60


@click.command("doctor")
@json_option
@console_options
def command(console: Console, *, as_json: bool) -> None:
    """Say which targets work here, and what is missing for the others.

    Each package is imported in a process of its own: installed is not yet working.

    \b
    Example:
      vadexport doctor
    """
    packages = _try_all(console)
    devices = _try_devices(packages)
    saturates = _saturates(packages)
    if as_json:
        console.result(json.dumps(_as_json(packages, devices, saturates=saturates), indent=2))
        return
    machine = f"{processor_name()}, {available_threads()} threads, {platform.platform()}"
    rows = [("vadexport", __version__), ("machine", machine)]
    rows += [
        (str(target), _state(target, packages, devices) + _note(target, saturates=saturates))
        for target in all_targets()
    ]
    rows += [(words, _words(packages[name])) for name, (words, _) in _HELPERS.items()]
    console.result(
        columns([(f"{name}:" if ":" not in name else name, text) for name, text in rows])
    )


@dataclass(frozen=True)
class _Package:
    """What became of a package when it was imported.

    Attributes:
        name: of its module.
        status: `works`, `missing` (it is not installed) or `broken`.
        version: None where it is missing or broken.
        reason: why it is; None where it works.
    """

    name: str
    status: str
    version: str | None = None
    reason: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong, for a reader; None where it works."""
        return f"broken: {self.reason}" if self.status == "broken" else self.reason


def _try_all(console: Console) -> dict[str, _Package]:
    """Import every package that a target or a helper needs, several at a time."""
    backends = [get_backend(name) for name in PRECISIONS]
    extras = {backend.PACKAGE: backend.EXTRA for backend in backends}
    extras |= {name: extra for name, (_, extra) in _HELPERS.items()}
    found = {}
    console.step("import packages", 0, len(extras))
    with ThreadPoolExecutor(min(available_threads(), len(extras))) as pool:
        for package in pool.map(_try, extras, extras.values()):
            found[package.name] = package
            console.step("import packages", len(found), len(extras))
    return found


def _try(name: str, extra: str | None) -> _Package:
    if importlib.util.find_spec(name) is None:
        return _Package(name, "missing", reason=str(MissingPackageError(name, extra)))
    try:
        with Child(f"import of {name}", timeout_s=_IMPORT_TIMEOUT_S) as child:
            return _Package(name, "works", version=child.run(_import, name))
    except VadexportError as error:
        return _Package(name, "broken", reason=str(error))


def _try_devices(packages: dict[str, _Package]) -> dict[Device, str | None]:
    """Why artifacts of a backend cannot run on a device; None where they can."""
    found: dict[Device, str | None] = {}
    for target in all_targets():
        backend = get_backend(target.backend)
        device = (target.backend, target.device)
        if device in found or not target.on_gpu or packages[backend.PACKAGE].problem is not None:
            continue
        try:
            with Child(f"{target.backend} on a GPU", timeout_s=_IMPORT_TIMEOUT_S) as child:
                child.run(backend.check_device, target)
            found[device] = None
        except VadexportError as error:
            found[device] = str(error)
    return found


def _saturates(packages: dict[str, _Package]) -> bool:
    """Whether INT8 products saturate in OpenVINO here; False where that cannot be found out."""
    if packages["openvino"].problem is not None:
        return False
    try:
        with Child("OpenVINO's INT8 products", timeout_s=_IMPORT_TIMEOUT_S) as child:
            return not child.run(adds_exactly)
    except VadexportError:
        return False


def _note(target: Target, *, saturates: bool) -> str:
    """What else there is to know of a target here."""
    quantised = target.backend == "openvino" and target.precision != "fp32"
    if not (saturates and quantised) or target.device:  # which is for processors like this one
        return ""
    return "; no VNNI here: weights take 7 bits, artifacts of 8 bits are refused"


def _import(name: str) -> str:
    """Version of a module that can be imported; raises whatever the import raises."""
    if name in _ON_TORCHVISION:
        from vadexport.torchvision_operators import declare_torchvision_operators

        declare_torchvision_operators()  # as vadexport does before it uses them
    module = importlib.import_module(name)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # another package that brings the same module
        version = str(getattr(module, "__version__", "of unknown version"))
    return version.partition("+")[0]


def _state(target: Target, packages: dict[str, _Package], devices: dict[Device, str | None]) -> str:
    backend = packages[get_backend(target.backend).PACKAGE]
    if backend.problem is not None:
        return f"missing: {backend.problem}" if backend.status == "missing" else backend.problem
    missing = devices.get((target.backend, target.device))
    if missing is None:
        return f"works, {target.backend} {backend.version}"
    if get_backend(target.backend).AHEAD_OF_TIME:
        return f"builds, {target.backend} {backend.version}; to run it: {missing}"
    return f"missing: {missing}"


def _words(package: _Package) -> str:
    return package.problem or f"{package.name} {package.version}"


def _as_json(
    packages: dict[str, _Package], devices: dict[Device, str | None], *, saturates: bool
) -> dict[str, object]:
    return {
        "vadexport": __version__,
        "machine": {
            "processor": processor_name(),
            "threads": available_threads(),
            "system": platform.platform(),
        },
        "targets": {
            str(target): {
                **_target_json(target, packages, devices),
                "note": _note(target, saturates=saturates).removeprefix("; ") or None,
            }
            for target in all_targets()
        },
        "packages": {name: _status_json(packages[name]) for name in _HELPERS},
    }


def _target_json(
    target: Target, packages: dict[str, _Package], devices: dict[Device, str | None]
) -> dict[str, object]:
    """Whether it can be built and run here."""
    no_device = devices.get((target.backend, target.device))
    backend = packages[get_backend(target.backend).PACKAGE]
    return {
        **_status_json(backend),
        "version": backend.version,
        "runs": backend.status == "works" and no_device is None,
        "device": no_device,
    }


def _status_json(package: _Package) -> dict[str, object]:
    return {"status": package.status, "version": package.version, "reason": package.reason}
