"""`vadexport doctor`."""

import importlib.metadata
import json
import platform

import click

from vadexport import __version__
from vadexport.backends.base import available_threads
from vadexport.backends.registry import get_backend
from vadexport.cli.console import Console, columns
from vadexport.cli.options import console_options, json_option
from vadexport.errors import VadexportError
from vadexport.machine import processor_name
from vadexport.targets import Target, all_targets

#: What INT8 and reports need beyond a backend: package, and the pip extra that brings it.
_HELPERS = {"nncf": "int8", "jinja2": "report", "timm": "timm"}
_HELPS_WITH = {"nncf": "INT8", "jinja2": "HTML reports", "timm": "backbones of timm"}


@click.command("doctor")
@json_option
@console_options
def command(console: Console, *, as_json: bool) -> None:
    """Say which targets work here, and what is missing for the others.

    \b
    Example:
      vadexport doctor
    """
    targets = {str(target): _state(target) for target in all_targets()}
    helpers = {name: _installed(name) for name in _HELPERS}
    if as_json:
        console.result(json.dumps({"targets": targets, "packages": helpers}, indent=2))
        return
    machine = f"{processor_name()}, {available_threads()} threads, {platform.platform()}"
    rows = [("vadexport", __version__), ("machine", machine)]
    rows += targets.items()
    rows += [
        (_HELPS_WITH[name], f"{name} {version}" if version else _missing(name))
        for name, version in helpers.items()
    ]
    console.result(
        columns([(f"{name}:" if ":" not in name else name, text) for name, text in rows])
    )


def _state(target: Target) -> str:
    try:
        version = get_backend(target.backend).version()
    except VadexportError as error:
        return f"missing: {error}"
    if target.precision == "int8" and _installed("nncf") is None:
        return f"{target.backend} {version} runs it; to build it: {_missing('nncf')}"
    return f"works, {target.backend} {version}"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(package: str) -> str:
    return f"{package} is not installed here: pip install 'vadexport[{_HELPERS[package]}]'"
