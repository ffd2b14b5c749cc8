"""serve_configs/*.yaml: Serve ignores unknown keys silently, so they are read strictly here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as as_serve_calls
from ray.serve.schema import ServeDeploySchema

from rayapp.config.serve import ServeArgs
from rayapp.serve.app import build
from rayapp.serve.coordinator import ENVIRONMENT
from rayapp.serve.haproxy import controller_env, replica_env

FOLDER = Path(__file__).resolve().parents[3] / "serve_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def unknown_keys(model: type[BaseModel], values: dict[str, Any], where: str = "") -> list[str]:
    """The keys of values, at any depth, that the model has no field for."""
    found = []
    for key, value in values.items():
        if key not in model.model_fields:
            found.append(where + key)
            continue
        inner = next((m for m in _models(model.model_fields[key].annotation)), None)
        if inner is not None:
            for at, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(one, dict):
                    found += unknown_keys(inner, one, f"{where}{key}[{at}].")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def deployments(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The deployments of the one application, by name."""
    (application,) = values["applications"]
    return {deployment["name"]: deployment for deployment in application["deployments"]}


def test_all_three_are_there():
    assert {path.stem for path in FILES} == {"local", "staging", "production"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_serve_knows_every_key(path: Path):
    assert unknown_keys(ServeDeploySchema, content(path)) == []
    ServeDeploySchema.model_validate(content(path))


def test_a_wrong_key_would_be_found():
    values = content(FOLDER / "local.yaml")
    values["applications"][0]["deployments"][0]["num_replica"] = 2
    values["http_options"]["hots"] = "x"

    assert unknown_keys(ServeDeploySchema, values) == [
        "http_options[0].hots",
        "applications[0].deployments[0].num_replica",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_application_is_built_from_its_args(path: Path):
    (application,) = content(path)["applications"]
    module, function = application["import_path"].split(":")
    built = as_serve_calls(build, application["args"])

    assert (module, function) == (build.__module__, build.__name__)
    assert application["route_prefix"] == "/"
    (rollout,) = (arg for arg in built._bound_deployment.init_args if isinstance(arg, Application))
    assert set(deployments(content(path))) == {built._bound_deployment.name, rollout._bound_deployment.name}
    with pytest.raises(ValidationError):
        as_serve_calls(build, {**application["args"], "max_bach": 1})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_applications_own_limits_bite_first(path: Path):
    values = content(path)
    (application,) = values["applications"]
    deployment = deployments(values)["VisionClassifier"]
    args = ServeArgs.model_validate(application["args"])

    assert values["http_options"]["request_timeout_s"] > args.timeout_s
    assert values["controller_options"]["runtime_env"]["env_vars"] == controller_env(
        haproxy=True, timeout_s=args.timeout_s
    ), "a request has timeout_s to arrive"
    assert deployment["max_ongoing_requests"] > args.max_queue
    assert deployment["graceful_shutdown_timeout_s"] > args.timeout_s
    assert deployment["ray_actor_options"]["num_cpus"] == args.num_threads
    assert values["http_options"]["host"], "without it Serve listens on every interface"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_haproxy_is_on_with_the_variables_of_the_code(path: Path):
    values = content(path)
    actor = deployments(values)["VisionClassifier"]["ray_actor_options"]

    assert values["controller_options"]["runtime_env"]["env_vars"] == controller_env(haproxy=True)
    assert actor["runtime_env"]["env_vars"] == replica_env(haproxy=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_loopback_is_without_keys(path: Path):
    values = content(path)
    (application,) = values["applications"]
    args = ServeArgs.model_validate(application["args"])

    assert args.api_keys or values["http_options"]["host"] == "127.0.0.1"


def test_there_is_one_rollout_and_it_reserves_no_cpu():
    for path in FILES:
        rollout = deployments(content(path))["Rollout"]
        assert (rollout["num_replicas"], rollout["ray_actor_options"]["num_cpus"]) == (1, 0)
        assert rollout["ray_actor_options"]["runtime_env"]["env_vars"] == ENVIRONMENT


def test_production_survives_a_node_and_scales():
    deployment = deployments(content(FOLDER / "production.yaml"))["VisionClassifier"]
    scaling = deployment["autoscaling_config"]

    assert deployment["num_replicas"] == "auto"
    assert scaling["min_replicas"] >= 2
    assert deployment["max_replicas_per_node"] < scaling["max_replicas"]
    assert scaling["target_ongoing_requests"] < deployment["max_ongoing_requests"]
