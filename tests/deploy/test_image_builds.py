"""The images, built and run: `make image-check`. Minutes, 25 GB of disk for a while, root, buildah and debootstrap."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator

import pytest

from tests.deploy.image_builds import Store, cpu_build_is_there, store
from tests.deploy.image_rules import HAPROXY, USER
from tests.deploy.test_images import TAGS
from tests.deploy.tools import VERSIONS

pytestmark = [
    pytest.mark.skipif(os.environ.get("BUILD_IMAGES") != "1", reason="builds images: run `make image-check`"),
    pytest.mark.timeout(5400),
]
JOBS = ("train", "tune", "evaluate", "promote", "batch_predict")
# The network is the machine's.
PORT = """
export PORT=$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
"""
TRAIN = """
python jobs/train.py --config jobs/configs/digits-resnet9.yaml --optim.epochs 1 --compute.num_workers 1
"""
SERVE = """
rayapp serve --model models:/vision@challenger --port $PORT > /tmp/serve.log 2>&1 & server=$!
trap 'kill -TERM $server || true; wait $server || true' EXIT
for _ in $(seq 300); do
    wget --quiet --tries 1 --output-document /dev/null http://127.0.0.1:$PORT/readyz && break
    kill -0 $server || { cat /tmp/serve.log; exit 1; }
    sleep 1
done
tail -5 /tmp/serve.log >&2
python - <<'PYTHON'
import io, os
import httpx
from PIL import Image
url = f"http://127.0.0.1:{os.environ['PORT']}"
file = io.BytesIO()
Image.new("RGB", (32, 32)).save(file, "PNG")
answer = httpx.post(f"{url}/predict_image", files={"image": file.getvalue()}, timeout=60)
print(answer.status_code, answer.headers["x-model-version"], httpx.get(f"{url}/readyz").status_code)
PYTHON
"""
# Users who may do nothing, a database in a file; /health, then a question without, with a wrong and with an account.
TRACK = """
cat > /tmp/auth.ini <<'INI'
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:////tmp/auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
secret=$(python -c 'import secrets; print(secrets.token_hex())')
export MLFLOW_AUTH_CONFIG_PATH=/tmp/auth.ini MLFLOW_AUTH_ADMIN_PASSWORD=$secret MLFLOW_FLASK_SERVER_SECRET_KEY=$secret
mlflow server --host 127.0.0.1 --port $PORT --app-name basic-auth --backend-store-uri sqlite:////tmp/mlflow.db \\
    --artifacts-destination /tmp/artifacts --expose-prometheus /tmp/metrics > /tmp/server.log 2>&1 & server=$!
trap 'kill -TERM $server || true; wait $server || true' EXIT
python - <<'PYTHON'
import os, time
import requests
url, account = f"http://127.0.0.1:{os.environ['PORT']}", ("admin", os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])
health = None
for _ in range(300):
    try:
        health = requests.get(f"{url}/health", timeout=5).status_code
        break
    except requests.ConnectionError:
        time.sleep(1)
def search(account):
    address = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    return requests.get(address, auth=account, timeout=60).status_code
print(health, search(None), search(("admin", "not the password")), search(account))
PYTHON
"""


@pytest.fixture(scope="module")
def images() -> Iterator[Store]:
    with store() as made:
        yield made


@pytest.fixture(scope="module")
def rayapp(images: Store) -> str:
    """The tag of our image: that without CUDA where its torch can be had."""
    variant = "cpu" if os.environ.get("TORCH_INDEX") or cpu_build_is_there() else "cuda"
    if variant == "cuda":
        warnings.warn("torch without CUDA cannot be had here: the cuda image is built instead", stacklevel=2)
    images.build(variant, torch_index=os.environ.get("TORCH_INDEX", ""))
    print(f"{TAGS[variant]}: {images.size(TAGS[variant])}, of which the base is {images.size(images.base)}")
    return TAGS[variant]


@pytest.fixture(scope="module")
def mlflow(images: Store) -> str:
    images.build("mlflow")
    print(f"{TAGS['mlflow']}: {images.size(TAGS['mlflow'])}, of which the base is {images.size(images.base)}")
    return TAGS["mlflow"]


def test_image_runs_as_its_user_and_says_how_it_is(images: Store, rayapp: str):
    config = images.config(rayapp)
    found = images.run(rayapp, f"id -u; id -g; pwd; {HAPROXY} -v; touch /app/x /opt/rayapp/x || echo refused").stdout

    assert config["User"] == USER
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "wget"]
    assert f"RAY_SERVE_HAPROXY_BINARY_PATH={HAPROXY}" in config["Env"]
    assert found.splitlines()[:3] == ["10001", "10001", "/app"]
    assert "HAProxy version" in found
    assert found.endswith("refused\n")


def test_jobs_tell_their_settings(images: Store, rayapp: str):
    jobs = [job for job in JOBS if images.run(rayapp, f"test -f jobs/{job}.py", ok=False).returncode == 0]
    found = images.run(rayapp, "\n".join(f"python jobs/{job}.py --help" for job in jobs)).stdout

    assert len(jobs) >= 4
    assert [f"usage: jobs/{job}.py" in found for job in jobs] == [True] * len(jobs)


def test_what_is_trained_in_the_image_is_served_by_it(images: Store, rayapp: str):
    found = images.run(rayapp, TRAIN + PORT + SERVE).stdout.splitlines()
    trained = next(json.loads(line) for line in found if line.startswith("{"))

    assert trained["val_accuracy"] > 0.5
    assert found[-1] == f"200 {trained['model_version']} 200"


def test_build_stops_at_another_version(images: Store, rayapp: str):
    """The check of the build, in the image: what it refuses here it refuses there."""
    check = "python /opt/rayapp/share/check_image.py"
    variant = "cuda" if rayapp.endswith("-cuda") else "cpu"
    done = images.run(rayapp, f"{check} {variant} ray==2.9.0", ok=False)
    other = images.run(rayapp, f"{check} {'cpu' if variant == 'cuda' else 'cuda'}", ok=False)

    assert (done.returncode, other.returncode) == (1, 1)
    assert f"ray is {VERSIONS['RAY_VERSION']}, and the build was given 2.9.0" in done.stderr
    assert "image has torch" in other.stderr


def test_mlflow_asks_who_is_there(images: Store, mlflow: str):
    found = images.run(mlflow, "id -u\n" + PORT + TRACK).stdout.splitlines()

    assert images.config(mlflow)["User"] == USER
    assert found[0] == "10001"
    assert found[-1] == "200 401 401 200"
