"""The option `--config`, and what goes before what: the command line before the file."""

from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from vadexport.config import Config, read_config

_T = TypeVar("_T")


class ConfigType(click.ParamType[Config]):
    """A `vadexport.toml`, read."""

    name = "FILE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Config:
        """See the base class; raises InputError where something in the file is wrong."""
        del param, ctx
        return value if isinstance(value, Config) else read_config(Path(value))


config_option: Final = click.option(
    "--config",
    type=ConfigType(),
    help="A vadexport.toml, see `vadexport init`; what is given here goes before it.",
)


def chosen(name: str, value: _T, stored: _T | None) -> _T:
    """The command line's value of an option; where that is but a default, the file's, if any."""
    given = click.get_current_context().get_parameter_source(name)
    return stored if given is ParameterSource.DEFAULT and stored is not None else value


def needed(value: _T | None, flag: str, key: str) -> _T:
    """What the command line or the file must say; raises a usage error where neither does."""
    if value is None:
        raise click.UsageError(
            f"missing {flag}: give it, or {key} in a file with --config",
            click.get_current_context(),
        )
    return value
