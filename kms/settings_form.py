"""How settings are declared, and what is said of one that is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dstack.errors import ConfigError
from dstack.web.urls import is_this_machine, split_url

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9})(ms|s|m|h|d)")

Value = TypeVar("Value")


class Section(BaseModel):
    """A table of the file: nothing unknown in it, no conversions, no changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


def without_effect(default: Value, why: str) -> Value:
    """A setting that upstream has and that does nothing here: taken, and said at the start."""
    field: Value = Field(default, json_schema_extra={"without_effect": why})
    return field


def http_url(text: str) -> str:
    """An http or https URL with a host.

    Raises:
        ValueError: It is not one; the text is not repeated, because a URL may hold a credential.
    """
    split_url(text)
    return text


def trusted_url(text: str) -> str:
    """A URL whose answers nobody in between can change: https, or http to this machine itself.

    Raises:
        ValueError: It is not one.
    """
    parts = split_url(text)
    if parts.scheme != "https" and not is_this_machine(parts.hostname or ""):
        raise ValueError("want https, or http to this machine itself")
    return text


def _duration(value: object) -> object:
    if isinstance(value, str):
        if not (found := _DURATION.fullmatch(value)):
            raise ValueError('want a time such as "2m", with one of ms, s, m, h, d')
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    if isinstance(value, timedelta):
        return value
    raise ValueError('want a time such as "2m"')


Port = Annotated[int, Field(ge=0, le=65535)]
ReadPath = Annotated[Path, Field(strict=False)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]


def one_or_several(value: object) -> object:
    """A text where a list of them may stand is a list of one."""
    return (value,) if isinstance(value, str) else value


HttpUrl = Annotated[str, AfterValidator(http_url)]
TrustedUrl = Annotated[str, AfterValidator(trusted_url)]


def setting_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting there is, dotted as it is written in the file, with its declaration."""
    for name, field in section.model_fields.items():
        kind = _section_of(field.annotation)
        if kind is not None:
            yield from setting_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def set_without_effect(section: Section, prefix: str = "") -> Iterator[str]:
    """A sentence for each setting of the file that does nothing here."""
    for name in type(section).model_fields:
        if name not in section.model_fields_set:
            continue
        value, extra = getattr(section, name), type(section).model_fields[name].json_schema_extra
        if isinstance(value, Section):
            yield from set_without_effect(value, f"{prefix}{name}.")
        elif isinstance(extra, dict) and "without_effect" in extra:
            yield f"{prefix}{name} has no effect: {extra['without_effect']}"


def config_error(error: ValidationError, root: type[Section]) -> ConfigError:
    """Everything that is wrong with a file, in one error."""
    return ConfigError("settings: " + "; ".join(_sentences(error, root)))


def _sentences(error: ValidationError, root: type[Section]) -> Iterator[str]:
    for problem in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield _about_unknown(name, root)
        elif problem["type"] == "missing":
            yield f"{name}: want a value, got none"
        else:
            yield f"{name or 'file'}: {problem['msg'].removeprefix('Value error, ')}"


def _about_unknown(name: str, root: type[Section]) -> str:
    close = difflib.get_close_matches(name, [known for known, _ in setting_fields(root)], n=1)
    return f"{name}: unknown setting" + (f" (did you mean {close[0]}?)" if close else "")


def _section_of(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
