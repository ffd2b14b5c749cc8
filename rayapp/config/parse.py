"""A YAML file, then flags, to the settings of a verb; each fault a sentence that names the nearest right key."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from rayapp.config.commands import Recipe, Settings, TrainSettings
from rayapp.errors import ConfigError, did_you_mean

S = TypeVar("S", bound=Settings)
NO_BOOLEANS = ("yes", "no", "on", "off", "y", "n", "t", "f", "1", "0")


class _Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError instead of printing its usage and leaving, with a help page for people."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        """The help page: a short usage line, and one default per option (pydantic-settings adds a second one)."""
        metavars = {"bool": "true|false", "int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
        for action in self._actions:
            text, has_default, default = (action.help or "").removesuffix(")").partition(" (default: ")
            if not has_default:
                continue
            if "[default: " not in text:
                shown = {"True": "true", "False": "false", "None": "none", "": "none"}.get(default, default)
                text += f" [default: {shown}]"
            action.help = text
            if isinstance(action.metavar, str):
                action.metavar = metavars.get(action.metavar, action.metavar)
        positional = "".join(f" {action.metavar} [...]" for action in self._actions if not action.option_strings)
        self.usage = f"{self.prog} [--config FILE.yaml] [--option value ...]{positional}"
        return super().format_help()


def load(settings_class: type[S], argv: Sequence[str], *, prog: str) -> S:
    """The settings that argv names: --config FILE.yaml first, --section.field value over it.

    Raises ConfigError on an unknown key (naming the nearest), a value out of range or an option without effect.
    Prints the help and raises SystemExit(0) on --help.
    """
    argv = _normalised(argv, set(_flags(settings_class, only=bool)))
    parser = _Parser(prog=prog, description=settings_class.__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings as YAML; flags win over it")
    known = set(_flags(settings_class)) | {"config", "help"}
    for word in argv:
        name = word[2:].split("=")[0]
        if word.startswith("--") and name not in known:
            raise ConfigError(f"unknown option --{name}.{did_you_mean(name, known)} See {prog} --help.")
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            settings_class, root_parser=parser, cli_parse_args=list(argv)
        )
        from_flags = source()
    except SettingsError as error:  # of what a flag takes as JSON
        raise ConfigError(f"{error}; write JSON, or put it into --config FILE.yaml") from error
    config = _config_file(argv)
    from_file = _read_yaml(config, settings_class) if config else {}
    if config and "base" in from_file:
        from_file["base"] = str(config.parent / str(from_file["base"]))
    values = _merged(from_file, from_flags)
    if base := values.get("base"):
        recipe = _read_yaml(Path(base), TrainSettings, option="base")
        if "base" in recipe:
            raise ConfigError(f"--base {base} has a base itself; name the recipe that it stands on")
        # of one training, not of a recipe
        own = set(TrainSettings.model_fields) - set(Recipe.model_fields) | {"register"}
        values = _merged({name: value for name, value in recipe.items() if name not in own}, values)
    return validate(settings_class, values)


def validate(settings_class: type[S], values: dict[str, Any]) -> S:
    """The settings in values (as YAML holds them). Raises ConfigError with one sentence per fault."""
    try:
        return settings_class(**values)
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(settings_class, dict(e)) for e in error.errors())) from error


def _normalised(argv: Sequence[str], switches: set[str]) -> list[str]:
    """argv as the parser wants it: --dry-run is --dry_run, and a switch without a value is true."""
    words: list[str] = []
    for at, word in enumerate(argv):
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        words.append(f"--{name}{equals}{value}")
        following = argv[at + 1].lower() if at + 1 < len(argv) else ""
        if name in switches and (given := value.lower() if equals else following) in NO_BOOLEANS:
            raise ConfigError(f"--{name} is '{given}': say true or false")
        if name in switches and not equals and following not in ("true", "false"):
            words.append("true")
    return words


def _flags(model: type[BaseModel], prefix: str = "", only: type | None = None) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _flags(field.annotation, f"{prefix}{name}.", only)
        elif only is None or field.annotation is only or only in get_args(field.annotation):
            names.append(prefix + (field.alias or name))
    return names


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """ "section.field" -> value, and "seed" -> value."""
    found: dict[str, Any] = {}
    for section, fields in sections.items():
        found |= {f"{section}.{k}": v for k, v in fields.items()} if isinstance(fields, dict) else {section: fields}
    return found


def _searchable() -> set[str]:
    """The settings that a sweep may vary: those that decide about the weights, and the seed."""
    fixed = ("compute", "checkpoint", "tracking", "cost")
    return {name for name in _flags(Recipe) if name.partition(".")[0] not in fixed}


def _config_file(argv: Sequence[str]) -> Path | None:
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", type=Path)
    config: Path | None = only_config.parse_known_args(list(argv))[0].config
    return config


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key may stand once: of two, YAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise ConfigError(f"'{key.value}' stands twice, in lines {lines[key.value]} and {line}; leave one out")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, settings_class: type[BaseModel], *, option: str = "config") -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceEach)  # noqa: S506 - a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"--{option} {path}: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read --{option} {path}: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{option} {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        sections = ", ".join(_siblings(settings_class, ()))
        raise ConfigError(f"--{option} {path} holds a {type(content).__name__}, not sections; allowed: {sections}")
    return {str(key): value for key, value in content.items()}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _siblings(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The settings and sections that may stand in the section at path, with their whole names."""
    parts = iter(path)
    for part in parts:
        section = model.model_fields[part].annotation
        if get_origin(section) is dict:  # its keys are the user's own
            next(parts)
            section = get_args(section)[1]
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        model = section
    return [".".join((*path, field.alias or name)) for name, field in model.model_fields.items()]


def _sentence(settings_class: type[BaseModel], error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting '{where}'.{did_you_mean(where, _siblings(settings_class, error['loc'][:-1]))}"
    if error["type"] == "value_error":  # from our own validators: already a sentence
        of = f"{where}: " if error["loc"] and error["loc"][0] == "space" else ""
        text = f"{of}{error['ctx']['error']}"
        return text if text.endswith((".", "?")) else f"{text}."
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where} is {error['input']!r}.{did_you_mean(str(error['input']), allowed)}"
    if error["type"] == "missing":
        return f"{where} is missing."
    if error["type"] == "model_type":
        return f"{where} is {error['input']!r}: it must be a section with settings of its own."
    message = error["msg"].replace("Input should be", "it must be").partition(", unable to")[0]
    return f"{where} is {error['input']!r}: {message}."
