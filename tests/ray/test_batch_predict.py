"""Batch prediction for real: Ray's actors, a model of a registry, images in folders, Parquet files and a bucket."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from rayapp.config.batch import ImagesConfig
from rayapp.config.commands import BatchPredictSettings
from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.data.unlabelled import unlabelled
from rayapp.errors import ConfigError, DataError, RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from rayapp.vision.bundle import Bundle
from rayapp.vision.predictor import Predictor
from tests.ray.program import last_line
from tests.support.bundles import CLASSES, write_tiny_bundle
from tests.support.images import encoded, picture
from tests.support.processes import children, kill
from tests.support.servers import s3_server
from tests.support.stores import home_at

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("ray_cluster")]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a champion."""
    folder = tmp_path_factory.mktemp("home")
    home = home_at(folder)
    tracker, registry = Tracker(home.tracking_uri, home.artifacts), Registry(home.tracking_uri)
    run = tracker.open_run("rayapp", "tiny", {}, {})
    bundle = write_tiny_bundle(folder / "tiny")
    registry.register(run, registry.log_bundle(run, bundle.folder), alias="champion")
    return home


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """These few images would be one task and one part."""
    from rayapp.batch import driver as batch_predict
    from rayapp.batch import output as predictions
    from rayapp.batch import pipeline as inference

    monkeypatch.setattr(inference, "TASK_IMAGES", 16)
    monkeypatch.setattr(batch_predict, "PART_IMAGES", 40)
    monkeypatch.setattr(predictions, "PART_IMAGES", 40)


def images(count: int, first: int = 0) -> list[bytes]:
    """Of several sizes, modes and formats."""
    kinds = [("RGB", 32, "PNG"), ("L", 20, "PNG"), ("RGBA", 50, "PNG"), ("RGB", 40, "JPEG"), ("P", 32, "GIF")]
    made = []
    for at in range(first, first + count):
        mode, side, kind = kinds[at % len(kinds)]
        made.append(encoded(picture(at, height=side, width=side + at % 3, mode=mode), kind))
    return made


def folder_of(root: Path, contents: list[bytes]) -> Path:
    for at, content in enumerate(contents):
        path = root / ("cat", "dog/brown", "")[at % 3] / f"{at:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def parquet_of(root: Path, contents: list[bytes], *, group: int = 7) -> Path:
    root.mkdir(parents=True)
    half = len(contents) // 2
    for name, part in (("a", contents[:half]), ("b", contents[half:])):
        rows = [{"bytes": content, "path": f"{at}.png"} for at, content in enumerate(part)]
        pq.write_table(pa.table({"image": rows}), root / f"{name}.parquet", row_group_size=group)
    return root


def settings(data: Path, output: Path, /, **more: Any) -> BatchPredictSettings:
    given: dict[str, Any] = {"data": {"path": str(data)}, "output": str(output), "batch_size": 8}
    return validate(BatchPredictSettings, given | more)


def predict(home: Home, data: Path, output: Path, /, **more: Any) -> tuple[dict[str, Any], str]:
    """The result, and what was said."""
    from rayapp.batch.driver import batch_predict

    said = io.StringIO()
    result = batch_predict(settings(data, output, **more), home, Console(file=said, width=200))
    return result.to_dict(), said.getvalue()


def rows(output: Path) -> dict[tuple[str, int | None], Row]:
    """By path and row; each image has one."""
    found = pq.read_table(output).to_pylist()
    keyed = {(row["path"], row["row"]): row for row in found}
    assert len(keyed) == len(found)
    return keyed


def expected(home: Home, data: Path) -> dict[tuple[str, int | None], list[float]]:
    """What serving would say of each image: decoded one by one, predicted one by one."""
    predictor = Predictor.load(Bundle.open(home.folder / "tiny"), device="cpu")
    spec, part = predictor.bundle.manifest.preprocess, unlabelled(ImagesConfig(path=str(data))).part
    return {
        (item.path, item.row): predictor.predict(spec.decode(bytes(item.read()))[None])[0].tolist()
        for item in part.items()
    }


@pytest.mark.parametrize("write", [folder_of, parquet_of])
def test_predictions_are_bit_by_bit_those_of_serving(home: Home, tmp_path: Path, write: Any) -> None:
    data, output = write(tmp_path / "set", images(101)), tmp_path / "out"
    result, said = predict(home, data, output)
    found, wanted = rows(output), expected(home, data)

    assert found.keys() == wanted.keys()
    for key, row in found.items():
        assert row["probabilities"] == wanted[key]
        assert row["class_id"] == int(np.argmax(wanted[key]))
        assert row["prediction"] == CLASSES[row["class_id"]]
        assert row["confidence"] == max(wanted[key])
        assert (row["error"], row["model_version"], row["model_digest"]) == (None, "1", result["bundle_digest"])
    assert len({row["prediction"] for row in found.values()}) > 1
    assert sorted(path.name for path in output.iterdir()) == ["_SUCCESS", *(f"part-0000{n}.parquet" for n in range(3))]
    assert [pq.read_metadata(output / f"part-0000{n}.parquet").num_rows for n in range(3)] == [40, 40, 21]
    assert (result["model_uri"], result["output"], result["device"]) == ("models:/vision/1", str(output), "cpu")
    assert (result["images"], result["failed"], result["resumed"]) == (101, 0, 0)
    assert result["images_per_s"] > 0
    assert json.loads((output / "_SUCCESS").read_text()) == result | {"class_names": list(CLASSES)}
    assert "100%  101 of 101 images  0 failed" in said


@pytest.mark.parametrize("write", [folder_of, parquet_of])
def test_an_image_that_cannot_be_decoded_is_a_row_that_says_why(
    home: Home, tmp_path: Path, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    contents = images(60)
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(deep, "PNG")
    bad = {5: b"no image", 17: encoded(picture(3))[:900], 18: b"", 44: deep.getvalue()}
    bad |= dict.fromkeys(range(24, 32), b"\x89PNG\r\n")  # a whole batch
    whole = expected(home, write(tmp_path / "good", contents))
    data = write(tmp_path / "set", [bad.get(at, content) for at, content in enumerate(contents)])
    result, said = predict(home, data, tmp_path / "out")

    found = list(rows(tmp_path / "out").values())
    failed = [row for row in found if row["error"]]
    assert (result["images"], result["failed"]) == (60, 12)
    assert len(failed) == 12
    assert {row["error"].partition(" (")[0] for row in failed} == {
        "the image cannot be decoded",
        "the image is empty",
        "the image has samples of more than 8 bits",
    }
    nothing = ("prediction", "class_id", "confidence", "probabilities")
    assert all(row[name] is None for row in failed for name in nothing)
    for row in found:
        if not row["error"]:
            assert row["probabilities"] == whole[row["path"].replace("/set/", "/good/"), row["row"]]
    assert "60 of 60 images  12 failed" in said
    (warning,) = [record.message for record in caplog.records if "could not be decoded" in record.message]
    assert warning.startswith("12 images could not be decoded: ")
    assert warning.count("set/") == 5


def test_a_file_that_is_gone_or_shut_is_a_row_that_says_so(home: Home, tmp_path: Path, monkeypatch: Any) -> None:
    from rayapp.batch import driver as batch_predict

    data = folder_of(tmp_path / "set", images(30))
    listed = unlabelled(ImagesConfig(path=str(data)))
    (data / "cat" / "003.png").unlink()
    (data / "cat" / "006.png").unlink()
    (data / "cat" / "006.png").mkdir()  # cannot be read, as root neither
    monkeypatch.setattr(batch_predict, "unlabelled", lambda _: listed)
    result, _ = predict(home, data, tmp_path / "out")

    errors = {
        os.path.relpath(row["path"], data): row["error"] for row in rows(tmp_path / "out").values() if row["error"]
    }
    assert (result["images"], result["failed"]) == (30, 2)
    assert "does not exist" in errors["cat/003.png"]
    assert "cannot be read" in errors["cat/006.png"]


def test_a_parquet_file_that_is_gone_ends_the_run_with_a_sentence(home: Home, tmp_path: Path, monkeypatch: Any) -> None:
    from rayapp.batch import driver as batch_predict

    data = parquet_of(tmp_path / "set", images(30))
    listed = unlabelled(ImagesConfig(path=str(data)))
    (data / "b.parquet").unlink()
    monkeypatch.setattr(batch_predict, "unlabelled", lambda _: listed)
    with pytest.raises(DataError, match=r"^\S+/b.parquet does not exist; check --data.path[^\n]*$"):
        predict(home, data, tmp_path / "out")
    assert not (tmp_path / "out" / "_SUCCESS").exists()


# Nothing is collected here, as in a process that only waits for Ray.
FAILS = """
import gc, sys, time
from pathlib import Path
from rayapp.batch import driver as verb, pipeline as inference
from rayapp.config.batch import ImagesConfig
from rayapp.config.env import Home
from rayapp.errors import DataError
from rayapp.config.commands import BatchPredictSettings
from rayapp.config.parse import validate
home, data, output = sys.argv[1:]
inference.TASK_IMAGES = 16
listed = verb.unlabelled(ImagesConfig(path=data))
(Path(data) / "b.parquet").unlink()
verb.unlabelled = lambda _: listed
gc.collect()
gc.disable()
settings = validate(BatchPredictSettings, {"data": {"path": data}, "output": output, "batch_size": 8})
try:
    verb.batch_predict(settings, Home(folder=Path(home), tracking_uri=f"sqlite:///{home}/mlflow.db"))
except DataError as error:
    kept = error
while ray.available_resources().get("CPU") != 2.0:
    time.sleep(0.2)
print(kept)
"""


def test_a_run_that_failed_holds_no_cpu(home: Home, tmp_path: Path) -> None:
    """Its error and cycles held Ray Data's actors, so that whatever came next waited for ever."""
    data = parquet_of(tmp_path / "set", images(30))
    said = last_line(FAILS, str(home.folder), str(data), str(tmp_path / "out"))
    assert "b.parquet does not exist; check --data.path" in said


def test_images_decoded_apart_for_gpus_come_out_the_same(home: Home, tmp_path: Path) -> None:
    from rayapp.batch.pipeline import Pipeline

    data = parquet_of(tmp_path / "set", [*images(50), b"no image"])
    part, bundle = unlabelled(ImagesConfig(path=str(data))).part, Bundle.open(home.folder / "tiny")
    together = Pipeline("cpu", num_workers=1, num_decoders=0, task_images=16, batch_size=8)
    apart = Pipeline("cpu", num_workers=1, num_decoders=1, task_images=16, batch_size=8)
    one, other = (
        pa.concat_tables(pipeline.tables(part.chunks, bundle, model_version="1")) for pipeline in (together, apart)
    )

    assert one.equals(other)
    assert one["row"].to_pylist() == [*range(25), *range(26)]


def test_a_run_that_was_cut_off_goes_on_and_says_so(home: Home, tmp_path: Path, monkeypatch: Any) -> None:
    from rayapp.batch.output import Output

    data, output, write = folder_of(tmp_path / "set", images(101)), tmp_path / "out", Output.write

    def stop_at_the_last(self: Output, number: int, table: pa.Table) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return write(self, number, table)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            predict(home, data, output)
    assert [path.name for path in output.iterdir()] == ["_partial"]
    result, said = predict(home, data, output)

    assert (result["images"], result["resumed"]) == (101, 80)
    assert "going on: 80 of 101 images were predicted by an earlier run" in said
    assert {key: row["probabilities"] for key, row in rows(output).items()} == expected(home, data)
    with pytest.raises(ConfigError, match="out has predictions already"):
        predict(home, data, output)
    again, _ = predict(home, data, output, overwrite=True)
    assert (again["images"], again["resumed"]) == (101, 0)


def test_a_process_that_is_killed_loses_nothing(home: Home, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "set", images(300))
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not killed and not stop.wait(0.02):
            workers = children(psutil.Process(), "_DecodingAndPredicting")  # of this test's cluster alone
            killed.extend(process.pid for process in workers[:1] if kill(process))

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        result, _ = predict(home, data, tmp_path / "out")
    finally:
        stop.set()
        killer.join()

    assert killed
    assert (result["images"], result["failed"]) == (300, 0)
    assert {key: row["probabilities"] for key, row in rows(tmp_path / "out").items()} == expected(home, data)


def test_what_cannot_work_is_said_at_once(home: Home, tmp_path: Path) -> None:
    from rayapp.batch.driver import batch_predict

    data, output = folder_of(tmp_path / "set", images(3)), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (RegistryError, "alias 'challenger' of 'vision' not found", {"model": "models:/vision@challenger"}),
        (DataError, "empty holds no image or Parquet files", {"data": {"path": str(tmp_path / "empty")}}),
        (DataError, "nowhere does not exist", {"data": {"path": str(tmp_path / "nowhere")}}),
        (ConfigError, "lies in the folder of the images", {"output": str(data / "out")}),
        (ConfigError, "compute.num_workers 3 on cpu needs 3 CPUs, the cluster has 2", {"compute": {"num_workers": 3}}),
    ]
    for kind, sentence, more in wrong:
        started = time.monotonic()
        with pytest.raises(kind, match=sentence) as caught:
            batch_predict(settings(data, output, **more), home)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - started < 30  # without waiting for anything
    assert not output.exists()


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The environment in which there is a bucket called pictures."""
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with s3_server() as url, pytest.MonkeyPatch.context() as patch:
        environment = keys | {"AWS_ENDPOINT_URL": url}
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="pictures")
        yield environment


def test_the_job_reads_from_a_bucket_and_writes_to_it(home: Home, tmp_path: Path, bucket: dict[str, str]) -> None:
    import boto3
    from pyarrow import fs

    local = folder_of(tmp_path / "set", [*images(30), b"no image"])
    for path in local.rglob("*.png"):
        boto3.client("s3").upload_file(str(path), "pictures", f"set/{path.relative_to(local)}")
    script = Path(__file__).parents[2] / "jobs" / "batch_predict.py"
    words = ["--data.path", "s3://pictures/set", "--output", "s3://pictures/out/today", "--compute.num_workers", "1"]
    environment = os.environ | bucket | {"RAYAPP_HOME": str(home.folder), "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, timeout=250, check=False
    )

    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["images"], result["failed"], result["output"]) == (31, 1, "s3://pictures/out/today")
    files, root = fs.FileSystem.from_uri("s3://pictures/out/today")
    found = {row["path"]: row for row in pq.read_table(root, filesystem=files).to_pylist()}
    wanted = {key[0]: value for key, value in expected_good(home, local).items()}
    assert {path.removeprefix("s3://pictures/set/") for path in found} == {
        str(path.relative_to(local)) for path in local.rglob("*.png")
    }
    for path, row in found.items():
        assert row["probabilities"] == wanted.get(str(local / path.removeprefix("s3://pictures/set/")))
    again = subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: output s3://pictures/out/today has predictions already;")


def expected_good(home: Home, data: Path) -> dict[tuple[str, int | None], list[float]]:
    """The same as expected() without the broken image."""
    (broken,) = [path for path in data.rglob("*.png") if path.read_bytes() == b"no image"]
    content = broken.read_bytes()
    broken.unlink()
    try:
        return expected(home, data)
    finally:
        broken.write_bytes(content)
