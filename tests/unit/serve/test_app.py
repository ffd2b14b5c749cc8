"""What can be refused before Ray starts, and how the application is put together."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch  # noqa: F401 - the first import of a process starts one (ldconfig), which no unit test may

from rayapp.config.commands import ServeSettings
from rayapp.config.env import Home
from rayapp.config.serve import ServeArgs
from rayapp.errors import ConfigError
from rayapp.serve.app import application, serve_forever
from rayapp.vision.predictor import resolve_device


@pytest.fixture
def nowhere(tmp_path: Path) -> Home:
    """A home whose registry must not be asked."""
    return Home(folder=tmp_path, tracking_uri="http://127.0.0.1:1")


def test_port_in_use_is_said_at_once(nowhere: Home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} .*\(pid {os.getpid()}\).*--port"):
            serve_forever(ServeSettings(port=port), nowhere)


def test_address_that_is_not_of_this_machine_is_said(nowhere: Home):
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1:3999"):
        serve_forever(ServeSettings(host="203.0.113.1", port=3999), nowhere)


def test_replicas_reserve_their_threads_and_queue_less_than_serve(nowhere: Home):
    args = ServeArgs(device="cpu", num_replicas=3, num_threads=2, max_queue=50)

    deployment = application(args, nowhere)._bound_deployment

    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options["num_cpus"] == 2
    assert deployment.ray_actor_options["num_gpus"] == 0
    assert deployment.max_ongoing_requests > args.max_queue


def test_gpu_is_reserved_where_one_is_asked_for(nowhere: Home):
    deployment = application(ServeArgs(device="cuda"), nowhere)._bound_deployment

    assert deployment.ray_actor_options["num_gpus"] == 1


def test_replicas_are_told_their_device_rather_than_import_torch_to_find_it(nowhere: Home):
    deployment = application(ServeArgs(device="auto"), nowhere)._bound_deployment

    assert deployment.init_args[0].device == resolve_device("auto")
