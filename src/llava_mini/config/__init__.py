"""The config of a run: frozen types, composed by Hydra from YAML and the command line, checked once.

`resolve` reads overrides `key=value`; the result is a `Config`, whose sections the parts of the program receive.
"""

from llava_mini.config.components import check_component, instantiate
from llava_mini.config.compose import import_own, load, load_values, options, resolve, save
from llava_mini.config.overrides import check_each_once
from llava_mini.config.types import Component, Config

__all__ = [
    "Component", "Config", "check_component", "check_each_once", "import_own", "instantiate", "load",
    "load_values", "options", "resolve", "save",
]  # fmt: skip
