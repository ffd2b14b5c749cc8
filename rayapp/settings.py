"""The settings of every verb, read from a YAML file and then from flags."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from rayapp.config import (
    MODEL_URI,
    REGISTERED_MODEL,
    AugmentConfig,
    CheckpointConfig,
    ComputeConfig,
    CostConfig,
    DataConfig,
    DatasetName,
    ImagesConfig,
    ModelConfig,
    OptimConfig,
    PredictorsConfig,
    ServeArgs,
    TrackingConfig,
)
from rayapp.errors import ConfigError, did_you_mean
from rayapp.sweep_config import (
    OPTIMIZER_SPACE,
    PERTURBABLE,
    PRESETS,
    BudgetConfig,
    SchedulerConfig,
    SearchConfig,
    Space,
    TrialsConfig,
    Value,
    WinnerConfig,
)

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NUM_DRAWS = 64  # of a space, to see whether it can give settings that are refused


class Settings(BaseSettings):
    """Settings of one verb. Flags win over the YAML file; unknown keys are errors that name the nearest right one."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given explicitly: a stray environment variable must not change a run."""
        return (init_settings,)


class Recipe(Settings):
    """What every training has, whoever asked for it."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    cost: CostConfig = CostConfig()
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of the images and their augmentation.")


class TrainSettings(Recipe):
    """Train a model, log it to MLflow and register its bundle as the challenger."""

    name: str | None = Field(
        None,
        pattern=RUN_NAME,
        description="Name of the run; one that exists is refused [default: data set, model and time].",
    )
    register_model: bool = Field(
        True,
        alias="register",
        description="Register the bundle as a new version of 'vision' and point the alias 'challenger' at it.",
    )
    resume: str | None = Field(
        None,
        description="Name or MLflow id of a run to go on with; its own settings are used, not today's. auto, with a"
        " name: go on with the run of that name if there is one, for jobs that are tried again.",
    )
    dry_run: bool = Field(
        False, description="Print the resolved settings, what they ask for and what that took so far, then stop."
    )

    @model_validator(mode="after")
    def _auto_needs_a_name(self) -> Self:
        if self.resume == "auto" and not self.name:
            raise ValueError("resume auto goes on with the run of a name: add --name NAME, or say --resume RUN")
        return self


class TuneSettings(Recipe):
    """Search the best settings of a recipe: many short trainings, most of them stopped early."""

    base: Path | None = Field(None, description="YAML of the recipe; what is given here goes over it.")
    space: Space = Field(
        OPTIMIZER_SPACE,
        description="Setting -> its values, as optim.lr: {log_uniform: [0.0001, 0.01]}; kinds: uniform, log_uniform,"
        " integer, log_integer, choice, grid [default: learning rate, weight decay and momentum].",
    )
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig = BudgetConfig()
    trials: TrialsConfig = TrialsConfig()
    winner: WinnerConfig = WinnerConfig()
    name: str | None = Field(
        None, pattern=RUN_NAME, description="Name of the sweep; one that exists is refused [default: recipe and time]."
    )
    then_train: bool = Field(
        False,
        description="Train the winner again with several seeds, register the best of them as the challenger, and"
        " evaluate that one on the test split.",
    )
    resume: str | None = Field(None, description="Name of a sweep to go on with; its own settings are used.")
    results: str | None = Field(None, description="Print the table of this sweep, and nothing else.")
    clean: str | None = Field(None, description="Remove the folder and checkpoints of this sweep, after asking.")
    yes: bool = Field(False, description="Do not ask before --clean removes.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not self.space:
            raise ValueError("space is empty; name a setting and its values, as optim.lr: {log_uniform: [0.001, 0.1]}")
        if self.compute.workers.high > 1 and (self.compute.workers.is_elastic or self.trials.shares):
            raise ValueError(
                f"trials of compute.num_workers {self.compute.num_workers} keep their number, and have whole cores or"
                " GPUs; say a number, not a range, and leave out trials.cpus and trials.gpus"
            )
        if self.yes and not self.clean:
            raise ValueError("yes answers the question of clean; add --clean NAME, or leave it out")
        if "winner" in self.model_fields_set and not self.then_train:
            raise ValueError("winner has no effect without then_train; add --then-train")
        given = [name for name in ("resume", "results", "clean") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; leave one out")
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        algorithm, kinds = self.search.algorithm, {d.kind for d in self.space.values()}
        if algorithm == "grid" and kinds - {"choice", "grid"}:
            raise ValueError("search.algorithm 'grid' needs lists (choice or grid) for all of space; say random")
        if algorithm == "grid" and self.budget.trials and self.budget.trials < self.num_trials:
            raise ValueError(
                f"budget.trials is {self.budget.trials}, but a grid runs all its {self.num_trials} combinations; leave"
                " it out, shorten the lists, or say --search.algorithm random"
            )
        if algorithm != "grid" and "grid" in kinds:
            raise ValueError(
                f"space has a grid, which search.algorithm '{algorithm}' does not walk; say choice, or grid"
            )
        if algorithm in ("hyperopt", "optuna") and find_spec(algorithm) is None:
            raise ValueError(
                f"search.algorithm '{algorithm}' needs the package {algorithm}, which is not installed:"
                f" pip install {algorithm}, or say random"
            )
        return self

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        scheduler = self.scheduler.name
        if self.search.latency and scheduler != "none":
            raise ValueError(f"scheduler.name '{scheduler}' stops trials by one aim; with search.latency say none")
        if scheduler != "none" and self.optim.early_stop_patience:
            raise ValueError(
                f"optim.early_stop_patience and scheduler.name '{scheduler}' both stop early; leave one out"
            )
        fixed = [name for name in self.space if not name.startswith(PERTURBABLE)]
        if scheduler == "pbt" and fixed:
            raise ValueError(
                f"scheduler.name 'pbt' changes values while a trial goes on, which {fixed[0]} cannot; allowed in space:"
                f" {', '.join(PERTURBABLE)}*"
            )
        if scheduler == "pbt" and self.search.algorithm != "random":
            raise ValueError("scheduler.name 'pbt' chooses new values itself; add --search.algorithm random")
        return self

    @model_validator(mode="after")
    def _space_gives_settings(self) -> Self:
        known, seen = _searchable(), set()
        fixed = self._recipe_values()
        for name, dimension in self.space.items():
            for mentioned in (name, *dimension.when):
                if mentioned not in known:
                    raise ValueError(f"space has the unknown setting '{mentioned}'.{did_you_mean(mentioned, known)}")
            for mentioned, wanted in dimension.when.items():
                if mentioned in self.space and mentioned not in seen:
                    raise ValueError(
                        f"space.{name} depends on {mentioned}, which does not stand before it; put it there"
                    )
                needed = wanted if isinstance(wanted, list) else [wanted]
                other = self.space.get(mentioned)
                if not any(other.may_be(value) if other else value == fixed[mentioned] for value in needed):
                    never = " or ".join(map(str, needed))
                    raise ValueError(f"space.{name} is never used: {mentioned} is never {never}; change its when")
            seen.add(name)
        if self.model.init and any(name.startswith("model.") for name in self.space):
            raise ValueError(f"model.init '{self.model.init}' is of one model, but space has others; leave one out")
        rng = random.Random(0)  # noqa: S311 - nothing secret
        for _ in range(NUM_DRAWS):
            drawn = {name: dimension.draw(rng) for name, dimension in self.space.items()}
            try:
                self.trial(drawn)
            except ConfigError as error:
                values = ", ".join(f"{name}={value}" for name, value in self.used(drawn).items())
                raise ValueError(
                    f"space can give settings that are refused, as {values}: {str(error).rstrip('.')};"
                    " change its values, or say with when: which of them go together"
                ) from error
        return self

    @property
    def num_trials(self) -> int:
        """Trials at most; of a grid each combination."""
        if self.search.algorithm == "grid":
            combinations = 1
            for dimension in self.space.values():
                combinations *= len(dimension.bounds)
            return combinations
        return self.budget.trials or PRESETS[self.search.preset]

    def used(self, drawn: Mapping[str, Value]) -> dict[str, Value]:
        """Of the drawn values those that apply: a condition looks at those listed before it, else at the recipe's."""
        # trial() leaves out what the recipe has of the settings in space
        defaults = {
            name: value for name, value in _flat(Recipe().model_dump(mode="json")).items() if name in self.space
        }
        known = self._recipe_values() | defaults
        used: dict[str, Value] = {}
        for name, dimension in self.space.items():
            if name in drawn and dimension.applies(known | used):
                used[name] = drawn[name]
        return used

    def _recipe_values(self) -> dict[str, Any]:
        return _flat(self.model_dump(mode="json", include=set(Recipe.model_fields)))

    def trial(self, drawn: Mapping[str, Value]) -> TrainSettings:
        """The settings of a trial. Where a value does not apply, the recipe's of that name is left out as well.

        Raises ConfigError where they do not go together.
        """
        content = self.model_dump(mode="json", include=set(Recipe.model_fields), exclude_unset=True)
        used = self.used(drawn)
        for name in self.space:
            section, _, field = name.rpartition(".")
            fields = content.setdefault(section, {}) if section else content
            fields.pop(field, None)
            if name in used:
                fields[field] = used[name]
        return validate(TrainSettings, content | {"register": False})


class EvaluateSettings(Settings):
    """Measure a model on the data set that its bundle names, and write the report to the model version."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@challenger", description=MODEL_URI)
    split: Literal["test", "validation"] = Field(
        "test", description="Split; test is opened once a version, choose between models on validation."
    )
    data_path: str | None = Field(
        None, description="Where the bundle's data set lies now, if it has moved; its digest must be the same."
    )
    batch_size: int = Field(256, ge=1, description="Images at once.")
    output: Path | None = Field(None, description="Folder for report.json and the plots [default: the run's folder].")


class PromoteSettings(Settings):
    """Point the alias 'champion' at a version, if it is better on the test split than today's champion."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@challenger", description=MODEL_URI)
    version: int | None = Field(None, ge=1, description="Version of 'vision', instead of model.")
    force: bool = Field(False, description="Promote although the gate says no; needs a reason.")
    reason: str = Field("", description="Why, for the record.")

    @model_validator(mode="after")
    def _force_has_a_reason(self) -> Self:
        if self.force and not self.reason.strip():
            raise ValueError("force needs a reason for the record: add --reason 'why this version must serve'")
        if self.version is not None and "model" in self.model_fields_set:
            raise ValueError(f"version {self.version} and model '{self.model}' are both given; leave one out")
        return self

    @property
    def uri(self) -> str:
        """The model that is meant."""
        return self.model if self.version is None else f"models:/{REGISTERED_MODEL}/{self.version}"


class RollbackSettings(Settings):
    """Point the alias 'champion' back at the version that was champion before."""

    reason: str = Field("", description="Why, for the record.")


class ModelsSettings(Settings):
    """Show the versions of the registered model with their aliases and accuracies as a table."""

    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")


class PredictSettings(Settings):
    """Classify image files with a model, or with a running server."""

    images: CliPositionalArg[list[Path]] = Field(description="Image files.")
    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    url: str | None = Field(None, description="Ask the server at this address, as http://127.0.0.1:3000, instead.")
    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")

    @model_validator(mode="after")
    def _model_or_url(self) -> Self:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is '{self.url}': it needs its scheme, as http://{self.url.rpartition('://')[2]}")
        if self.url and "model" in self.model_fields_set:
            raise ValueError(f"model '{self.model}' has no effect with url, whose server has its own; leave one out")
        return self


class BatchPredictSettings(Settings):
    """Classify every image of a folder or bucket with a model, and write the predictions as Parquet."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    data: ImagesConfig = ImagesConfig()
    output: str = Field(
        "", description="Folder (local or s3://) of the predictions; it is whole once _SUCCESS is in it."
    )
    overwrite: bool = Field(False, description="Replace the predictions that are there, once the new ones are whole.")
    batch_size: int = Field(64, ge=1, description="Images that go through the model at once.")
    compute: PredictorsConfig = PredictorsConfig()

    @model_validator(mode="after")
    def _places_are_given(self) -> Self:
        if not self.data.path:
            raise ValueError("data.path is missing: add --data.path FOLDER (local or s3://)")
        if not self.output:
            raise ValueError("output is missing: add --output FOLDER (local or s3://)")
        return self


class ServeSettings(Settings):
    """Serve a model on this machine: the REST contract at http://HOST:PORT."""

    app: ServeArgs = ServeArgs()
    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens it to the network.")
    port: int = Field(3000, ge=1, le=65535, description="TCP port.")
    haproxy: bool = Field(
        sys.platform == "linux",
        description="HAProxy takes the requests (comes with Ray on Linux, far faster), not Serve's own proxy.",
    )

    @model_validator(mode="after")
    def _haproxy_is_there(self) -> Self:
        if self.haproxy and sys.platform != "linux":
            raise ValueError("haproxy comes with Ray on Linux only; leave it out")
        return self

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if "model" in self.app.model_fields_set:
            raise ValueError("app.model has no effect here; use --model")
        return self


class DemoSettings(Settings):
    """Take a model through its whole life on this machine, in a home of its own, and say PASS or FAIL a step."""

    dataset: DatasetName = Field("digits", description="Data set.")
    path: str | None = Field(None, description="Folder of a 'folder' or 'parquet' data set.")
    num_workers: int = Field(2, ge=1, description="Training processes.")
    port: int = Field(3000, ge=1, le=65535, description="TCP port of the server; a free one is taken if it is in use.")
    keep: bool = Field(False, description="Keep the demo's home (.rayapp-demo) instead of starting afresh.")


class DoctorSettings(Settings):
    """Check this machine: versions, cores, memory, disk, GPU, Ray, MLflow, data; each with what to do about it."""

    port: int = Field(3000, ge=1, le=65535, description="TCP port that a server would listen on.")
    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")


# --- reading ----------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Settings)
NO_BOOLEANS = ("yes", "no", "on", "off", "y", "n", "t", "f", "1", "0")


class _Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError instead of printing its usage and leaving, with a help page for people."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        """The help page: a short usage line, and one default an option (pydantic-settings adds a second one)."""
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
    """The settings in values (as YAML holds them). Raises ConfigError with one sentence a fault."""
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
