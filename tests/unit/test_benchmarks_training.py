"""The benchmarks of training: their figures, their peers' recipe against ours, and what accuracy.py may import."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks import accuracy, cifar10, commands, recipes, training
from benchmarks import training_report as report
from benchmarks.peers import plain
from benchmarks.training_report import (
    FIT_2,
    PLAIN,
    PLAIN_1,
    PLAIN_2,
    PLAIN_2_CL,
    RAYAPP_1,
    RAYAPP_2,
    Epoch,
    Measured,
)
from rayapp.config.train import AugmentConfig, DataConfig, ModelConfig, OptimConfig
from rayapp.data import datasets
from rayapp.data.preprocess import Images
from rayapp.errors import ConfigError, DataError, RayAppError
from rayapp.registry.tracking import MetricLog, Tracker
from rayapp.vision.models import build_model
from rayapp.vision.optim import TrainPlan

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_TEST = 120, 20
RESNET9 = str(ROOT / "jobs" / "configs" / "cifar10-resnet9.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet and test.parquet in Hugging Face's layout: noise whose mean is its class."""
    made = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    for part, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        rows = [
            {"image": {"bytes": _png(rng, label % 10), "path": None}, "label": label % 10} for label in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), made / f"{part}.parquet")
    return made


def _png(rng: np.random.Generator, label: int) -> bytes:
    pixels = rng.integers(20 * label, 20 * label + 60, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def run_of(name: str, epoch_s: float, *, number: int = 0, loss: float = 1.0, others: float = 0.0) -> Measured:
    """Three epochs of 900 images; the first one is slow, and after each a tenth of a second goes to something else."""
    ended = [10.0, 10.0 + epoch_s, 10.0 + 2 * epoch_s]
    epochs = [Epoch(900, at, epoch_s - 0.1, loss, val_accuracy=0.5) for at in ended]
    return Measured(name, number, tuple(epochs), start_up_s=5.0, memory_mib=1000.0, others_cpu=others)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_an_epoch_lasts_until_the_next_one_ends_and_the_first_is_not_counted():
    epochs = (Epoch(900, 30.0, 20.0, 2.0, 0.1), Epoch(900, 32.5, 2.4, 1.9, 0.2), Epoch(900, 35.5, 2.4, 1.8, 0.3))
    found = Measured("any", 0, epochs, start_up_s=10.0, memory_mib=1.0, others_cpu=0.0)

    assert found.epoch_s == pytest.approx(2.75)
    assert found.rate == pytest.approx(900 / 2.75)


def test_a_target_compares_round_by_round_with_the_peers_fastest():
    measured = []
    for number, slow in enumerate((1.0, 3.0, 1.0)):  # the second round met a slow minute of the machine
        for name, seconds in ((RAYAPP_2, 2.0), (PLAIN_2, 4.0), (PLAIN_2_CL, 2.2), (PLAIN, 5.0)):
            measured.append(run_of(name, slow * seconds, number=number))

    same, usual = report.ratios(measured, "cpu")

    assert (same.theirs, same.met) == (PLAIN_2_CL, True)
    assert (same.times.low, same.times.high) == pytest.approx((1.1, 1.1))
    assert (usual.theirs, usual.times.median, usual.met) == (PLAIN, pytest.approx(2.5), False)


def test_ray_may_cost_a_fortieth_of_an_epoch():
    within = [run_of(RAYAPP_2, 2.049), run_of(FIT_2, 2.0)]
    beyond = [run_of(RAYAPP_2, 2.051), run_of(FIT_2, 2.0)]

    assert [report.ratios(runs, "cpu")[0].met for runs in (within, beyond)] == [True, False]


def test_a_gpu_has_targets_of_its_own():
    measured = [run_of(RAYAPP_1, 1.0), run_of(RAYAPP_2, 1.0), run_of(PLAIN, 9.0)]

    assert [ratio.target.factor for ratio in report.ratios(measured, "cuda")] == [8.0]
    assert 8.0 not in [ratio.target.factor for ratio in report.ratios(measured, "cpu")]


def test_loss_curves_are_equal_within_the_noise_of_the_rounds():
    ours = [run_of(RAYAPP_2, 1.0, number=n, loss=loss) for n, loss in enumerate((1.00, 1.02, 1.04))]
    near = [run_of(PLAIN_2, 1.0, number=n, loss=loss) for n, loss in enumerate((1.01, 1.03, 1.06))]
    far = [run_of(PLAIN_2, 1.0, number=n, loss=loss) for n, loss in enumerate((1.21, 1.23, 1.26))]

    assert report.loss_difference([*ours, *near]).met
    assert not report.loss_difference([*ours, *far]).met
    assert report.loss_difference([*ours, near[0]]) is None


def test_the_json_says_whether_all_targets_are_met_and_the_machine_was_calm():
    good = [run_of(RAYAPP_2, 1.0), run_of(PLAIN_2, 2.0)]
    bad = [run_of(RAYAPP_2, 1.0), run_of(PLAIN_2, 1.0, others=0.3)]

    found = [report.as_json(runs, report.ratios(runs, "cpu"), None) for runs in (good, bad)]

    assert [(f["met"], f["calm"]) for f in found] == [(True, True), (False, False)]
    assert "DISTURBED: other programs used 30% of the machine" in report.line(bad[1])


@pytest.mark.parametrize(("device", "processes"), [("cpu", None), ("cuda", ["1"])])
def test_every_target_has_its_contestants(device, processes, tmp_path):
    words = ["--data", "any", "--device", device, *(["--processes", *processes] if processes else [])]
    options = training._options().parse_args([*words, "--only", "rayapp", "fit", "plain"])

    contestants = {c.name for c in training._contestants(training.Bench(options, tmp_path, tmp_path, None))}

    wanted = {name for t in report.TARGETS if t.device == device for name in (t.ours, *t.theirs)}
    assert wanted
    assert wanted <= contestants
    assert {RAYAPP_1, PLAIN_1} <= contestants  # of the loss, where there is one process alone


# --- measuring --------------------------------------------------------------------------------------------------------


def test_all_get_the_same_subset(folder: Path, tmp_path: Path):
    counts = [training.write_subset(folder, tmp_path / name, 50) for name in ("a", "b")]
    tables = [pq.read_table(tmp_path / name / "train.parquet") for name in ("a", "b")]

    assert counts == [50, 50]
    assert tables[0].equals(tables[1])
    assert len(set(tables[0]["label"].to_pylist())) == 10


def test_a_folder_without_data_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert training.main(["--data", str(tmp_path), "--only", "fit"]) == 1
    assert "train.parquet is not there; give --data" in capsys.readouterr().err


def test_lightning_that_is_not_there_is_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    python = str(tmp_path / "python")

    assert training.main(["--data", str(folder), "--only", "lightning", "--peers-python", python]) == 1
    assert f"{python} has no Lightning; make it with" in capsys.readouterr().err


def test_lines_that_are_no_epochs_are_passed_over():
    line = {"epoch": 1, "ended_at": 7.0, "seconds": 2.0, "images_per_s": 450.0, "train_loss": 1.5, "val_accuracy": 0.4}

    (epoch,) = training.json_epochs(f"GPU available: False\n{json.dumps(line)}\nbye\n")

    assert epoch == Epoch(900.0, 7.0, 2.0, 1.5, 0.4)


def test_epochs_of_rayapp_come_from_mlflow(tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = Tracker(uri).open_run("any", "run", {}, {})
    metrics = MetricLog(uri, run_id, tmp_path / "spool.jsonl")
    for epoch in (1, 2):
        metrics.log({"val/loss": 1.0, "val/accuracy": epoch / 10}, epoch)
        metrics.log({"epoch/train_loss": 3.0 - epoch, "epoch/seconds": 2.0, "epoch/images_per_s": 450.0}, epoch)
    assert metrics.close(timeout_s=30.0) == 0

    first, second = training.mlflow_epochs(uri, f'noise\n{{"run_id": "{run_id}"}}\n')

    assert (first.num_images, first.seconds, first.train_loss, first.val_accuracy) == (900.0, 2.0, 2.0, 0.1)
    assert (second.train_loss, second.val_accuracy) == (1.0, 0.2)
    assert second.ended_at >= first.ended_at > 1e9


def test_a_command_is_watched_with_its_children(tmp_path: Path):
    child = "import time; block = b'x' * 60_000_000; time.sleep(2.5)"
    code = "import subprocess, sys, os; print(os.environ['A'], 'OMP_NUM_THREADS' in os.environ, flush=True);"
    code += f" subprocess.run([sys.executable, '-c', {child!r}])"

    done = commands.run([sys.executable, "-c", code], {"A": "yes"}, tmp_path / "log", timeout_s=60)

    assert done.stdout == "yes False\n"
    assert 60 < done.memory_mib < 200
    assert 0 <= done.others_cpu <= 1


def test_a_command_that_fails_is_an_error_with_its_last_words(tmp_path: Path):
    with pytest.raises(RayAppError, match=r"ended with code 1; .*no such model"):
        commands.run([sys.executable, "-c", "raise SystemExit('no such model')"], {}, tmp_path / "log", timeout_s=60)


def test_a_command_that_hangs_is_ended(tmp_path: Path):
    with pytest.raises(RayAppError, match="did not end in time"):
        commands.run([sys.executable, "-c", "import time; time.sleep(60)"], {}, tmp_path / "log", timeout_s=0.5)


# --- the peers' recipe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plain.MODELS)
def test_the_plain_script_has_our_model(name: str):
    ours = build_model(ModelConfig(name=name), num_classes=10, image_px=32, mean=plain.MEAN, std=plain.STD)
    theirs = plain.build_model(name)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.backbone.state_dict().values(), strict=True)))
    images_nhwc = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    normalised_nchw = (images_nhwc.permute(0, 3, 1, 2) / 255 - _channels(plain.MEAN)) / _channels(plain.STD)

    for model in (ours, theirs):
        model.train()
        torch.manual_seed(0)  # dropout
        model(images_nhwc if model is ours else normalised_nchw)  # norms remember it, by their momentum
        model.eval()

    assert torch.allclose(ours(images_nhwc), theirs(normalised_nchw), atol=1e-3, rtol=1e-3)


def _channels(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def test_the_plain_script_has_our_optimiser_and_schedule():
    config, steps = TrainPlan.of(OptimConfig(batch_size=256), num_images=45_000), 400
    model = plain.build_model("resnet9")
    optimizer, schedule = plain.build_optimizer(model, peak_lr=config.peak_lr, num_steps=steps)
    rates = _rates(optimizer, schedule, steps)
    ours = [config.lr_at((step + 0.5) / steps) for step in range(steps)]

    assert rates == pytest.approx(ours, abs=0.01 * config.peak_lr)
    groups = [(g["weight_decay"], {p.ndim for p in g["params"]} <= {1}) for g in optimizer.param_groups]
    assert groups == [(config.weight_decay, False), (0.0, True)]
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(config.momentum, True)}
    assert config.label_smoothing == plain.SMOOTHING


def _rates(optimizer: torch.optim.Optimizer, schedule: OneCycleLR, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_plain_script_has_our_split_and_changes_training_images_alone(folder: Path, tmp_path: Path):
    config = DataConfig(dataset="parquet", path=str(folder))
    dataset = datasets.load(config, tmp_path)
    train, validation = plain.datasets(folder)

    ours, theirs = dataset.validation(config).images_nhwc, validation.images_nhwc
    assert sorted(image.tobytes() for image in theirs) == sorted(image.tobytes() for image in ours)
    assert len(train) == len(dataset.split(config).train_indices)
    assert torch.equal(validation[0][0], validation[0][0])
    assert len({train[0][0].sum().item() for _ in range(8)}) > 1


def _lines(words: list[str]) -> list[dict[str, float]]:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"epoch"')]


def test_the_plain_script_trains_in_two_processes(folder: Path):
    script = ["benchmarks/peers/plain.py", "--data", str(folder), "--epochs", "2", "--batch-size", "16"]

    lines = _lines([*training._torchrun(2), *script, "--model", "mobilenet_v3_small", "--loader-workers", "0"])

    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["images_per_s"] * lines[0]["seconds"] == pytest.approx(96)  # 108, the last batch is left out
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert len(training.json_epochs("\n".join(map(json.dumps, lines)))) == 2


def test_fit_without_ray_is_measured_as_any_contestant(folder: Path, tmp_path: Path):
    small = ["--images", "110", "--epochs", "2", "--rounds", "1", "--batch-size", "16"]
    options = ["--data", str(folder), "--only", "fit", "--processes", "1", "--logs", str(tmp_path), *small]

    assert training.main([*options, "--output", str(tmp_path / "result.json")]) == 0

    result = json.loads((tmp_path / "result.json").read_text())
    (run,) = result["runs"]
    assert run["name"] == report.FIT_1
    assert run["images_per_s"] > 0
    assert run["start_up_s"] > 0
    assert len(run["train_loss"]) == 2


# --- accuracy ---------------------------------------------------------------------------------------------------------

# What `pip install torch torchvision pydantic pyarrow` does not bring, of all that rayapp uses.
ABSENT = (
    *(
        "filelock",
        "ray",
        "mlflow",
        "sklearn",
        "scipy",
        "pandas",
        "pydantic_settings",
        "yaml",
        "rich",
        "psutil",
        "matplotlib",
    ),
    *("onnx", "onnxscript", "onnxruntime", "safetensors", "boto3", "httpx", "requests", "starlette", "orjson"),
)


def _accuracy(folder: Path, options: str) -> tuple[int, dict[str, object]]:
    """Exit code and result of a process that cannot import what is ABSENT."""
    words = f"--data {folder} --device cpu --threads 1 --epochs 1 --batch-size 16 {options}".split()
    code = f"""
import sys
from importlib.machinery import PathFinder

class Without:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
from benchmarks import accuracy
sys.exit(accuracy.main({words}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert not done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_accuracy_runs_where_only_torch_and_its_few_companions_are(folder: Path):
    recipe = "--config jobs/configs/cifar10-mobilenet_v3_small.yaml"

    returncode, found = _accuracy(folder, f"{recipe} --seeds 2 --open-test --target 0.01")

    assert returncode == 0
    assert found["measured_on"] == "test"
    assert len(found["train_s"]["values"]) == len(found["test_accuracy"]["values"]) == 2
    assert found["train_s"]["mean"] > 0
    assert found["conditions"]["optim"]["batch_size"] == 16


def test_accuracy_opens_the_test_only_when_asked_to(folder: Path, tmp_path: Path):
    (tmp_path / "train.parquet").write_bytes((folder / "train.parquet").read_bytes())

    returncode, found = _accuracy(tmp_path, "--model mobilenet_v3_small --seeds 1 --target 1.01")

    assert returncode == 1
    assert (found["measured_on"], found["met"], "test_accuracy" in found) == ("val", False, False)
    assert accuracy.main(["--data", str(tmp_path / "none")]) == 1


def test_one_seed_gives_the_same_weights_whatever_was_trained_before(folder: Path):
    recipe = recipes.Recipe(optim=OptimConfig(epochs=1, batch_size=32))
    images = cifar10.read_images(folder / "train.parquet")
    bench = accuracy.Bench(recipe, images, device=torch.device("cpu"), compiled=False)
    first = bench.train(0)
    bench.warm_up()
    other, again = bench.train(1), bench.train(0)

    name = "backbone.classifier.3.weight"
    assert torch.equal(first.weights[name], again.weights[name])
    assert not torch.equal(first.weights[name], other.weights[name])
    assert first.accuracies == again.accuracies
    assert bench.test(first, images) == bench.test(again, images)


def test_the_clock_stands_still_while_validation_batches_are_taken():
    seen = []

    class Noted(accuracy.Clock):
        def start(self) -> None:
            seen.append("start")

        def stop(self) -> None:
            seen.append("stop")

    images = Images(np.zeros((5, 32, 32, 3), dtype=np.uint8), np.zeros(5, dtype=np.int64))
    batches = accuracy.UntimedBatches(images, np.arange(5), batch_size=2, device=torch.device("cpu"))
    batches.clock = Noted(torch.device("cpu"))
    seen += [len(batch.labels_n) for batch in batches.epoch(0)]  # type: ignore[misc]

    assert seen == ["stop", "start", 2, 2, 1]


def test_the_clock_adds_up_what_lies_between_start_and_stop(monkeypatch: pytest.MonkeyPatch):
    moments: Iterator[float] = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(accuracy.time, "perf_counter", lambda: next(moments))  # type: ignore[attr-defined]
    clock = accuracy.Clock(torch.device("cpu"))

    for _ in range(2):
        clock.start()
        clock.stop()

    assert clock.seconds() == pytest.approx(2.5)


def test_a_tenth_of_each_class_is_for_validation_always_the_same():
    labels_n = np.repeat(np.arange(10), 5000)

    (train_n, validation_n), again = cifar10.split(labels_n), cifar10.split(labels_n)

    assert (len(train_n), len(validation_n)) == (45_000, 5_000)
    assert np.bincount(labels_n[validation_n]).tolist() == [500] * 10
    assert not set(train_n) & set(validation_n)
    assert np.array_equal(validation_n, again[1])
    assert np.ptp(np.diff(validation_n)) > 10  # spread over the file


def test_images_come_out_of_the_parquet_file(folder: Path, tmp_path: Path):
    images = cifar10.read_images(folder / "train.parquet")

    assert images.images_nhwc.shape == (NUM_TRAIN, 32, 32, 3)
    assert images.images_nhwc[9].mean() == pytest.approx(20 * 9 + 29.5, abs=2)
    assert images.labels_n.tolist() == [label % 10 for label in range(NUM_TRAIN)]
    with pytest.raises(DataError, match=r"train\.parquet is not there; give --data"):
        cifar10.read_images(tmp_path / "train.parquet")


@pytest.mark.parametrize(
    "config", sorted((ROOT / "jobs" / "configs").glob("cifar10-*.yaml")), ids=lambda path: path.stem
)
def test_a_recipe_is_read_as_train_reads_it(config: Path):
    job = yaml.safe_load(config.read_text())
    recipe = _recipe("--config", str(config))

    assert recipe.model == ModelConfig(**job["model"])
    assert recipe.optim == OptimConfig(**job["optim"])
    assert recipe.augment == AugmentConfig(**job.get("augment", {}))


@pytest.mark.parametrize("text", ["model: resnet9\n", "optim:\n  epochs\n", "optim:\n  - 3\n"])
def test_a_recipe_that_is_not_plain_is_refused(text: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("# comment\n" + text)

    with pytest.raises(ConfigError, match="is neither 'section:' nor '  name: value'"):
        recipes.read_config(tmp_path / "recipe.yaml")


def _recipe(*words: str) -> recipes.Recipe:
    return accuracy._recipe(accuracy._options().parse_args(["--data", "any", *words]))


def test_options_stand_over_the_recipe():
    found = _recipe("--config", RESNET9, "--lr", "0.7", "--cutout", "0", "--label-smoothing", "0.0")

    assert (found.optim.lr, found.augment.cutout_px, found.optim.label_smoothing) == (0.7, 0, 0.0)
    assert found.optim.batch_size == _recipe("--config", RESNET9).optim.batch_size


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config", "resnet8.yaml"], "--config resnet8.yaml is not there; give a file of jobs/configs"),
        (["--model", "resnet50"], "model.name is 'resnet50'"),
        (["--epochs", "0"], "optim.epochs is 0"),
    ],
)
def test_a_wrong_option_of_accuracy_is_one_sentence(words: list[str], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        _recipe(*words)


def test_a_mean_has_its_spread_and_the_target_is_for_the_test_once_it_was_opened():
    trials = [accuracy.Trial(seed, 10.0 + seed, [0.5, 0.90 + seed / 50], {}) for seed in range(3)]

    closed = accuracy.summary(trials, target=0.915)
    for trial in trials:
        trial.test_accuracy = 0.91
    opened = accuracy.summary(trials, target=0.915)

    assert (closed["val_accuracy"]["mean"], closed["val_accuracy"]["std"]) == pytest.approx((0.92, 0.02))
    assert (closed["train_s"]["mean"], closed["met"], closed["measured_on"]) == (11.0, True, "val")
    assert (opened["met"], opened["measured_on"]) == (False, "test")
