"""A RAY_ADDRESS that leads nowhere is said in seconds and in a sentence: ray.init would try for 14 minutes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from rayapp.config.env import ray_address
from rayapp.errors import ConfigError
from rayapp.runtime.address import check_address
from rayapp.runtime.short_paths import short_enough


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and says nothing, as a dashboard does to gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def head() -> Iterator[str]:
    """The address of something that speaks gRPC, as a cluster's head does."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def gone() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("dashboard", ["http://127.0.0.1:8265", "https://ray.example:443"])
def test_the_address_of_a_dashboard_is_told_its_own_variable(dashboard: str) -> None:
    with pytest.raises(ConfigError, match=r"is the address of a dashboard, .* RAY_API_SERVER_ADDRESS .* HOST:PORT"):
        check_address(dashboard)


@pytest.mark.parametrize("word", ["127.0.0.1", ":6379", "127.0.0.1:port", "k8s://head:6379", "a:b:c", "host:99999"])
def test_what_names_no_cluster_is_said_with_what_would(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS={word} names no Ray cluster; set it to HOST:PORT"):
        check_address(word)


def test_nobody_there_a_stranger_there_and_a_note_of_a_cluster_that_is_gone(
    gone: str, silent: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (gone, f"ray://{gone}"):
        with pytest.raises(ConfigError, match=r"no Ray cluster answers at .*: Connection refused; start one"):
            check_address(address)
    with pytest.raises(ConfigError, match="what listens there is no head of a Ray cluster"):
        check_address(silent)
    check_address(head)
    check_address(f"ray://{silent}")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_address("auto")  # nothing is noted: Ray looks itself
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{gone}\n")
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS=auto \(ray_current_cluster in .* says {gone}\)"):
        check_address("auto")


def test_local_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ray would start one with other settings than ours."""
    for word in ("local", ""):
        monkeypatch.setenv("RAY_ADDRESS", word)
        assert ray_address() is None


def test_sockets_get_a_short_folder_where_the_usual_one_is_too_long() -> None:
    """The path of a socket has 107 bytes at most; Slurm's TMPDIR alone may have 90. Bytes count, not letters."""
    assert short_enough(Path("/scratch/me"), 60) == Path("/scratch/me")
    assert short_enough(Path("/scratch") / ("x" * 90), 60) == Path("/tmp")
    assert short_enough(Path("/scratch") / ("é" * 20), 60) == Path("/tmp")
