"""What a process loads when it imports a part of rayapp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.layers import SERVE_NEVER

ROOT = Path(__file__).resolve().parents[2]


def test_data_and_vision_import_without_ray_and_mlflow():
    paths = [*ROOT.glob("rayapp/data/[!_]*.py"), *ROOT.glob("rayapp/vision/[!_]*.py")]
    modules = sorted(f"rayapp.{path.parent.name}.{path.stem}" for path in paths)
    blocked = ["ray", "mlflow", "starlette", "fastapi", "httpx", "boto3", "orjson", "prometheus_client", "psutil"]
    code = f"""
import importlib, sys
for name in {blocked}:
    sys.modules[name] = None  # importing it raises ImportError
for name in {modules}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "never"),
    [
        # the actor that holds it, and Ray Train's controller that gets its handle, took 4 s more of each training
        ("rayapp.runtime.progress", "torch"),
        # `rayapp evaluate` and `rayapp models` took seconds more, for a layer that none of them computes
        ("rayapp.registry.evaluation", "torchvision"),
        ("rayapp.registry.models", "torch"),
    ],
)
def test_what_a_module_has_no_use_for_it_does_not_load(module: str, never: str):
    code = f"import sys, {module}; sys.exit('{never}' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0


def test_serve_loads_no_data_set_and_no_training_code():
    modules = sorted(f"rayapp.serve.{path.stem}" for path in ROOT.glob("rayapp/serve/[!_]*.py"))
    never = [*sorted(f"rayapp.{name}" for name in SERVE_NEVER), "rayapp.train", "rayapp.tune"]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
loaded = [name for name in {never} if name in sys.modules]
sys.exit(f"loaded by serving: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--help"], "--optim.label_smoothing"),
        (["train", "--optim.lr", "-1"], "optim.lr is '-1'"),
        (["train"], "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9"),
        (["tune", "--results", "none"], "no sweep 'none'"),  # which asks no cluster
    ],
)
def test_what_needs_no_library_is_said_before_they_are_imported(words: list[str], said: str) -> None:
    """torch, Ray and MLflow take seconds to import: 34 s on a busy machine, until a wrong address was named."""
    script = f"""
import contextlib, sys
from rayapp.cli import main
with contextlib.suppress(SystemExit):
    main({words!r})
print([m for m in ('torch', 'ray', 'mlflow', 'onnxruntime') if m in sys.modules])
"""
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert said in done.stdout + done.stderr


def test_a_server_that_explains_has_no_window_to_draw_in() -> None:
    code = "import sys, rayapp.vision.explain as e; e.overlay(e.Image.new('L', (9, 9)), e.np.zeros((9, 9), 'float32'));"
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0


NOT_FOR_ANSWERS = {"torch", "torchvision", "matplotlib", "sklearn", "scipy", "onnxscript", "mlflow.pyfunc"}

ANSWER = """
import sys
from pathlib import Path
import rayapp.serve.app
from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import client_of
with client_of(tiny_served(Path(sys.argv[1]))) as client:
    client.post("/predict_image", files={"image": encoded(picture())}).raise_for_status()
print(*sys.modules)
"""


def test_replica_imports_what_answering_needs_and_no_torch(tmp_path: Path):
    """A replica held a gigabyte: torch and what comes with it took 700 MB, and ONNX Runtime answers."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    imported = set(done.stdout.split())
    assert "onnxruntime" in imported
    assert imported & NOT_FOR_ANSWERS == set()
