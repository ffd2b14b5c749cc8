"""What all benchmarks share: options, the start of what is measured, the bare start, and the end."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks import commands, data, frame, servers, serving, training, tuning
from rayapp.config.train import DataConfig
from rayapp.data import datasets
from rayapp.errors import RayAppError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("accuracy", "chaos", "flips", "hosts", "kills", "mutations", "serving", "soak", "training", "tuning")
SERVER = f"""#!{sys.executable}
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[sys.argv.index("--port") + 1]))
"""
# A benchmark whose second measurement never ends: a process of its own, or one in an event loop.
ENDLESS = """
import asyncio, sys, time
from dataclasses import dataclass
from pathlib import Path
from benchmarks import frame, servers

@dataclass
class Row:
    pid: int

def measure(bench):
    bench.begin({}, num_rows=2, seconds=60)
    with servers.started(["sleep", "600"], {}, bench.options.logs / "sleep.log") as (server, process):
        bench.add(Row(process.pid), "a row")
        frame.run_async(asyncio.sleep(600)) if WAY == "loop" else time.sleep(600)

def conclude(bench):
    bench.console.print("TABLE OF", len(bench.rows))
    return {"passed": True, "rows": [row.pid for row in bench.rows]}

sys.exit(frame.bench_main(frame.Parser("endless", "About."), measure, conclude))
"""


@dataclass
class Measured:
    n: int


def _parser(name: str) -> frame.Parser:
    found: frame.Parser = importlib.import_module(f"benchmarks.{name}").parser()
    return found


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_the_command_line_is_absolute(name: str):
    """A relative one, handed to a process that starts in another folder, was not found there."""
    parser = _parser(name)
    paths = [a for a in parser._actions if isinstance(parser.get_default(a.dest), Path) or a.type in (Path, frame.path)]

    for action in paths:
        given = vars(parser.parse_args([action.option_strings[0], "some/where"]))[action.dest]
        usual = vars(parser.parse_args([]))[action.dest]
        assert given == Path.cwd() / "some" / "where"
        assert usual is None or usual.is_absolute()
    assert {"logs", "output"} <= {action.dest for action in paths}


def test_a_relative_interpreter_is_found_by_a_server_that_starts_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`make bench-serving` ended with "No such file or directory: .venv-bench/bin/bentoml"."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    program = tmp_path / "venv" / "bin" / "bentoml"
    program.write_text(SERVER)
    program.chmod(0o755)
    service = tmp_path / "elsewhere" / "service.py"
    service.parent.mkdir()
    (service.parent / "readyz").write_text("the service's folder")
    monkeypatch.chdir(tmp_path)

    options = serving.parser().parse_args(["--peers-python", "venv/bin/python", "--bento-service", str(service)])
    command = servers.bentoml(options.peers_python, options.bento_service, tmp_path, workers=1)

    with servers.running(command, tmp_path / "log") as server:
        assert httpx.get(f"{server.url}/readyz").text == "the service's folder"


def test_quick_changes_what_is_not_given():
    options = training.parser().parse_args(["--quick", "--epochs", "3"])

    assert (options.quick, options.rounds, options.epochs) == (True, training.QUICK["rounds"], 3)
    assert training.parser().parse_args([]).rounds > options.rounds


@pytest.mark.parametrize("word", ["0", "-2", "1.5", "many"])
def test_a_number_of_nothing_is_refused(word: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        tuning.parser().parse_args([f"--seeds={word}"])

    assert f"'{word}' is not a number of things; give 1 or more" in capsys.readouterr().err


# --- what is started --------------------------------------------------------------------------------------------------


def test_a_server_has_all_its_processes_and_leaves_none(tmp_path: Path):
    (tmp_path / "livez").write_text("yes")
    serve = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    with_child = f"import subprocess, sys; subprocess.run({serve!r})"
    command = servers.Command([sys.executable, "-c", with_child], ready="GET /livez", folder=tmp_path)

    with servers.running(command, tmp_path / "log") as server:
        family = server.processes()

    assert len(family) == 2
    assert not any(process.is_running() for process in family)


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path):
    command = servers.Command([sys.executable, "-c", "raise SystemExit('no such model')"], ready="GET /livez")

    with pytest.raises(RayAppError, match="no such model"), servers.running(command, tmp_path / "log"):
        pass


def test_a_command_is_watched_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the shell has set is not given to a contestant by accident."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    child = "import time; block = b'x' * 60_000_000; time.sleep(4)"
    code = "import subprocess, sys, os; print(os.environ['A'], 'OMP_NUM_THREADS' in os.environ, flush=True);"
    code += f" subprocess.run([sys.executable, '-c', {child!r}])"

    done = commands.run([sys.executable, "-c", code], {"A": "yes"}, tmp_path / "log", timeout_s=60)

    assert done.stdout == "yes False\n"
    assert 60 < done.memory_mib < 200
    assert 0 <= done.others_cpu <= 1


@pytest.mark.parametrize(
    ("code", "timeout_s", "says"),
    [
        ("raise SystemExit('no such model')", 60, r"ended with code 1; .*no such model"),
        ("import time; time.sleep(60)", 0.5, "did not end in time"),
    ],
)
def test_a_command_that_fails_or_hangs_is_an_error(code: str, timeout_s: float, says: str, tmp_path: Path):
    with pytest.raises(RayAppError, match=says):
        commands.run([sys.executable, "-c", code], {}, tmp_path / "log", timeout_s=timeout_s)


# --- the bare start ---------------------------------------------------------------------------------------------------


def test_the_images_of_a_bare_start_are_digits_that_rayapp_reads(tmp_path: Path):
    """`make bench-training` and `make bench-tuning` as the README names them ended in "--data is required"."""
    for parser, name in ((training.parser(), "a"), (tuning.parser(), "b")):
        options = parser.parse_args(["--images", "200"])
        assert data.write(options, tmp_path / name)[0] == 200

    found = datasets.load(DataConfig(dataset="parquet", path=str(tmp_path / "a")), tmp_path / "home")
    assert (found.info.num_classes, found.info.height_px, found.info.num_train) == (10, 32, 200)
    tables = [pq.read_table(tmp_path / name / "train.parquet") for name in ("a", "b")]
    assert tables[0].equals(tables[1])


def test_training_measures_without_any_option_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--only", "fit", "--processes", "1", "--rounds", "1", "--images", "110", "--epochs", "2"]

    assert training.main([*words, "--batch-size", "16", "--logs", str(tmp_path)]) == 0

    said, result = capsys.readouterr().out, json.loads((tmp_path / "training.json").read_text())
    assert "takes  about" in said
    assert json.loads(said.splitlines()[-1]) == result
    assert result["complete"]
    (run,) = result["runs"]
    assert run["name"] == training.FIT_1
    assert len(run["train_loss"]) == 2


def test_accuracy_measures_bare_where_neither_ray_nor_mlflow_is(tmp_path: Path):
    """It ended in "--data is required". psutil alone of what `pip install 'rayapp[app]'` brings is needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    absent = {word.partition("[")[0].replace("-", "_") for word in project["optional-dependencies"]["app"]}
    code = f"""
import sys
from importlib.machinery import PathFinder

class Without:
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent - {"psutil"}} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without()
from benchmarks import accuracy
words = "--seeds 1 --open-test --target 0.01 --threads 1 --optim.epochs 1 --compute.device cpu --logs {tmp_path}"
sys.exit(accuracy.main(words.split()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)

    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout.splitlines()[-1])
    assert {target["what"].split(",")[0]: target["met"] for target in found["targets"]}["test accuracy"] is True


@pytest.mark.parametrize("module", [training, tuning])
def test_a_folder_without_data_is_one_sentence(module, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    only = ["--only", "fit"] if module is training else []

    assert module.main(["--data", str(tmp_path), "--logs", str(tmp_path), *only]) == 1
    assert "train.parquet is not there; give --data" in capsys.readouterr().err


def test_lightning_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    python = str(tmp_path / "python")

    assert training.main(["--only", "lightning", "--peers-python", python, "--logs", str(tmp_path)]) == 1
    assert f"{python} has no Lightning; make it with" in capsys.readouterr().err


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("way", ["process", "loop"])
def test_what_was_measured_before_an_interruption_is_kept(number: signal.Signals, way: str, tmp_path: Path):
    """Ctrl-C after 10 of 45 minutes ended in a traceback, and the rows measured until then were lost."""
    words = [sys.executable, "-c", f"WAY = {way!r}\n{ENDLESS}", "--logs", str(tmp_path)]
    pipe, output = subprocess.PIPE, tmp_path / "endless.json"
    with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as running:
        while not output.exists() and running.poll() is None:
            time.sleep(0.1)
        assert json.loads(output.read_text())["complete"] is False  # what a kill -9 leaves
        time.sleep(1)
        running.send_signal(number)
        out, errors = running.communicate(timeout=100)

    assert running.returncode == 130
    assert errors == (f"interrupted after 1 of 2 measurements; what was measured is above and in {output}\n")
    table, result = out.splitlines()[-2:]
    assert table == "TABLE OF 1"
    assert json.loads(result) == json.loads(output.read_text())
    assert not psutil.pid_exists(json.loads(result)["rows"][0])


def test_training_that_is_terminated_shows_its_rows(tmp_path: Path):
    words = ["--only", "fit", "--processes", "1", "--rounds", "99", "--images", "110", "--epochs", "2"]
    words += ["--batch-size", "16", "--logs", str(tmp_path)]
    command, output = [sys.executable, "-m", "benchmarks.training", *words], tmp_path / "training.json"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not output.exists() and running.poll() is None:
            time.sleep(0.1)
        running.terminate()
        out, errors = running.communicate(timeout=200)

    assert running.returncode == 130
    assert errors.startswith("interrupted after ")
    assert "Traceback" not in errors
    result = json.loads(out.splitlines()[-1])
    assert not result["complete"]
    assert {run["name"] for run in result["runs"]} == {training.FIT_1}


def test_a_contestant_that_fails_costs_the_rest_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def measure(bench: frame.Bench[Measured]) -> None:
        bench.begin({}, num_rows=2, seconds=1)
        bench.add(Measured(7), "a row")
        raise RayAppError("the second one failed.")

    code = frame.bench_main(
        frame.Parser("any", "About."), measure, lambda b: {"passed": True, "n": b.rows[0].n}, ["--logs", str(tmp_path)]
    )

    said = capsys.readouterr()
    assert code == 1
    assert json.loads(said.out.splitlines()[-1])["n"] == 7
    assert said.err.startswith("error: the second one failed; what was measured is above")
