"""API keys: off unless a file of digests is given; then predictions and the model's description want one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import Client

from rayapp.errors import ConfigError, RequestError
from rayapp.predict import ask_server
from rayapp.serve.auth import ApiKeys
from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of

PAGE = Path(__file__).parents[2] / "docs/serving.md"
KEY, OTHER = "k" * 32, "o" * 32


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\n{digest(KEY)}  alice's programs\n", encoding="utf-8")
    return path


@pytest.fixture
def client(tmp_path: Path, path: Path) -> Iterator[Client]:
    with client_of(tiny_served(tmp_path / "model"), api_keys=path) as client:
        yield client


@pytest.mark.parametrize("endpoint", ["/predict_image", "/predict_batch", "/get_model_info"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Basic abc"}, 401), ({"authorization": "Bearer"}, 401), (bearer(OTHER), 403)],
    ids=["none", "basic", "empty", "wrong"],
)
def test_request_without_a_known_key_is_refused_in_the_contracts_shape(
    client: Client, endpoint: str, headers: dict[str, str], status: int
):
    answer = client.post(endpoint, files={"image": encoded(picture())}, headers=headers)

    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert OTHER not in answer.text


def test_request_with_a_key_is_served(client: Client):
    assert client.post("/get_model_info", headers=bearer(KEY)).status_code == 200
    assert client.post("/get_model_info", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    assert len(ask_server(str(client.base_url), [encoded(picture())], key=KEY)) == 1
    with pytest.raises(RequestError, match="answered 401"):
        ask_server(str(client.base_url), [encoded(picture())])


@pytest.mark.parametrize("path_", ["/livez", "/readyz", "/metrics", "/", "/docs.json"])
def test_probes_metrics_and_pages_want_no_key(client: Client, path_: str):
    assert client.get(path_).status_code == 200
    assert client.post("/health").status_code == 200


def test_changed_file_counts_at_once_and_a_broken_one_changes_nothing(
    client: Client, path: Path, caplog: pytest.LogCaptureFixture
):
    path.write_text(f"{digest(OTHER)}\n", encoding="utf-8")
    assert client.post("/get_model_info", headers=bearer(KEY)).status_code == 403
    assert client.post("/get_model_info", headers=bearer(OTHER)).status_code == 200

    with caplog.at_level(logging.ERROR):
        path.unlink()
        assert client.post("/get_model_info", headers=bearer(OTHER)).status_code == 200
        assert client.post("/get_model_info", headers=bearer(KEY)).status_code == 403
    assert caplog.text.count("API keys not reloaded") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no API key"), ("# none\n", "no API key"), (KEY, "line 1 of .* is no SHA-256"), ("a" * 63, "line 1")],
    ids=["empty", "comment", "clear", "short"],
)
def test_file_without_digests_is_refused_and_its_text_is_not_shown(tmp_path: Path, text: str, words: str):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=words) as refused:
        ApiKeys(path)

    assert KEY not in str(refused.value)


def test_missing_file_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        ApiKeys(tmp_path / "no-such-file")


def test_the_commands_of_the_page_make_a_key_and_use_it(tmp_path: Path):
    make, use = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def typed(script: str) -> str:
        return subprocess.run(
            ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    typed(make)
    assert {(tmp_path / name).stat().st_mode & 0o077 for name in ("client.key", "keys.sha256")} == {0}
    picture().save(tmp_path / "photo.png")
    serve, predict, curl = use.splitlines()
    assert serve == "rayapp serve --app.api_keys keys.sha256"
    with client_of(tiny_served(tmp_path / "model"), api_keys=tmp_path / "keys.sha256") as client:
        url = str(client.base_url).rstrip("/")
        answers = [typed(line.replace("http://127.0.0.1:3000", url)) for line in (predict, curl)]
        with pytest.raises(subprocess.CalledProcessError):
            typed(f"rayapp predict photo.png --url {url}")
    assert "photo.png" in answers[0]
    assert '"predicted_class"' in answers[1]
