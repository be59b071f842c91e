"""A whole build in one file, `vadexport.toml`: what it holds, how it is read and written."""

from vadexport.config.choices import LimitChoices, SourceChoices
from vadexport.config.reading import Config, read_config
from vadexport.config.writing import commands, config_text, location_in

__all__ = [
    "Config",
    "LimitChoices",
    "SourceChoices",
    "commands",
    "config_text",
    "location_in",
    "read_config",
]
