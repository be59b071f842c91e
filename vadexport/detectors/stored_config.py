"""A family's configuration as a checkpoint holds it, back into its dataclass."""

import dataclasses
import typing
from typing import Any, TypeVar

from vadexport.errors import InputError

_Config = TypeVar("_Config")


def read_config(config_class: type[_Config], config: Any, label: str) -> _Config:
    """Read what `dataclasses.asdict` gave and JSON carried.

    Args:
        config_class: a frozen dataclass whose fields are str, int, float, bool or tuple of int.
        config: a JSON value, which may be anything.
        label: of the family, for the error.

    Raises:
        InputError: a field is missing, unknown, or of another type, or the class refuses it.
    """
    try:
        fields = dict(config)
        for name, kind in typing.get_type_hints(config_class).items():
            fields[name] = _as(kind, fields[name])
        return config_class(**fields)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the {label} configuration is damaged: {error}") from None


def as_json(config: Any) -> dict[str, Any]:
    """The form that `read_config` reads."""
    return dataclasses.asdict(config)


def _as(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        if type(value) not in (list, tuple) or any(type(each) is not int for each in value):
            raise TypeError(f"{value!r} is no list of whole numbers")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
