"""Objects of the classes that a config names. The signature of a class is its schema, checked before the call."""

from __future__ import annotations

import inspect
from typing import Any

from hydra.utils import get_class
from pydantic import TypeAdapter, ValidationError

from llava_mini.config.types import Component, first_error
from llava_mini.errors import UserError


def instantiate(component: Component, key: str, **given: Any) -> Any:
    """Call a component's class with its arguments, checked against the class's signature.

    Args:
        component: Class and arguments.
        key: Key of the component in the config, for messages.
        **given: Arguments that are not in the config.

    Raises:
        UserError: the class does not exist, a key is unknown or missing, a value has the wrong type, or a class of the
            user's own lacks a method or raises an error.
    """
    target, arguments = _checked_call(component, key, set(given))
    try:
        return target(**arguments, **given)
    except Exception as error:
        if isinstance(error, UserError) or component.target.startswith("llava_mini."):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{key}: {component.target} cannot be made ({reason})", key=key) from error


def check_component(component: Component, key: str, given: set[str], *, complete: bool = True) -> None:
    """Check what `instantiate` would refuse, without calling the class.

    Args:
        component: Class and arguments.
        key: Key of the component in the config, for messages.
        given: Names of the arguments that are not in the config.
        complete: Whether arguments may not be missing.

    Raises:
        UserError: `instantiate` would raise it.
    """
    _checked_call(component, key, given, complete=complete)


def _checked_call(
    component: Component, key: str, given: set[str], *, complete: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Return a component's class and its checked arguments."""
    arguments = dict(component.arguments)
    try:
        target = get_class(component.target)
    except Exception as error:  # hydra wraps whatever the import raised
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{key}._target_={component.target}: {reason}", key=f"{key}._target_", value=component.target
        ) from error
    parameters = inspect.signature(target, eval_str=True).parameters
    allowed = [name for name in parameters if name not in given]
    for name, value in arguments.items():
        if name not in allowed:
            takes = ", ".join(allowed)
            raise UserError(
                f"unknown key {key}.{name}: {target.__name__} takes {takes}", key=f"{key}.{name}", allowed=takes
            )
        arguments[name] = _checked(f"{key}.{name}", value, parameters[name].annotation)
    missing = [n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing and complete:
        raise UserError(f"missing key {key}.{missing[0]}: {target.__name__} needs it", key=f"{key}.{missing[0]}")
    return target, arguments


def _checked(key: str, value: Any, annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise first_error(error, key) from error
