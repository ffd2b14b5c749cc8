"""The parts of the benchmarks that only compute: what they make of wrk's output, answers, stacks and readings."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import bare, chaos, conditions, flips, load, processes, profiling, report, servers, soak, wrk
from benchmarks.load import Answer, Client
from benchmarks.report import BATCHES, BENTO, LIT, MANY, ONE, RAYAPP, Measured, Spread
from benchmarks.serving import picture
from rayapp.errors import RayAppError
from rayapp.serve.asgi import prediction
from tests.support.bundles import tiny_served
from tests.support.serving import client_of

WRK = """Running 5s test @ http://127.0.0.1:3000
  1 threads and 32 connections
RESULT requests=11342 seconds=5.021 p50_ms=13.900 p90_ms=18.200 p99_ms=27.010 non2xx=0 socket=0 timeout=0
"""


def run(rate: float = 100.0, *, p50_ms: float = 5.0, p99_ms: float = 9.0, non2xx: int = 0) -> wrk.Run:
    return wrk.Run(int(rate * 10), 10.0, p50_ms, p99_ms, p99_ms, non2xx, 0, 0, client_cpu_s=0.5)


def measured(group: str, name: str, load: wrk.Load, run: wrk.Run, *, number: int = 0, others: float = 0.0) -> Measured:
    return Measured(group, name, number, load, run, {processes.REPLICAS: 2.0, processes.HAPROXY: 0.2}, others)


def answer(done_s: float, *, version: str = "1", problem: str = "", took_s: float = 0.0) -> Answer:
    return Answer(done_s - took_s, done_s, version, problem)


# --- wrk --------------------------------------------------------------------------------------------------------------


def test_the_result_line_is_read():
    found = wrk.parse(WRK, client_cpu_s=0.3)

    assert (found.requests, found.seconds, found.errors) == (11342, 5.021, 0)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (13.9, 18.2, 27.01)
    assert found.rate == pytest.approx(2258.9, abs=0.1)


def test_every_kind_of_failure_makes_a_run_invalid():
    found = wrk.parse(WRK.replace("non2xx=0 socket=0 timeout=0", "non2xx=3 socket=2 timeout=1"))

    assert found.errors == 6
    assert "INVALID: 6 failed" in report.line(measured(RAYAPP, "rayapp, 1 replica", MANY, found))


def test_output_without_a_result_is_an_error_that_quotes_it():
    with pytest.raises(RayAppError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:3000 Connection refused")


def test_a_run_beside_other_programs_says_so():
    line = report.line(measured(RAYAPP, "rayapp, 1 replica", MANY, run(), others=0.31))

    assert "DISTURBED: other programs used 31% of the machine" in line


# --- tables -----------------------------------------------------------------------------------------------------------


def three_servers() -> list[Measured]:
    found = []
    for number, slow in enumerate((1.0, 2.0, 1.1)):  # the second round met a slow minute of the machine
        for name, rate, p99_ms in (("rayapp, 1 replica", 1300, 40), ("rayapp, 2 replicas", 2400, 25)):
            found.append(measured(RAYAPP, name, MANY, run(rate / slow, p99_ms=p99_ms * slow), number=number))
        for name, rate, p99_ms in (("BentoML, 1 worker", 200, 300), ("BentoML, 2 workers", 150, 260)):
            found.append(measured(BENTO, name, MANY, run(rate / slow, p99_ms=p99_ms * slow), number=number))
    found += [measured(RAYAPP, "rayapp, 2 replicas", ONE, run(p50_ms=1.5)), measured(RAYAPP, "x", ONE, run(p50_ms=1))]
    found += [measured(BENTO, "BentoML, 1 worker", ONE, run(p50_ms=4.5))]
    return found


def test_ratios_compare_within_a_round_and_against_the_peers_best_at_each_figure():
    requests, p99, p50 = report.ratios(three_servers())

    assert (requests.ours, requests.theirs) == ("rayapp, 2 replicas", "BentoML, 1 worker")
    assert (requests.times.low, requests.times.high) == pytest.approx((12.0, 12.0), rel=1e-3)
    assert (p99.ours, p99.theirs) == ("rayapp, 2 replicas", "BentoML, 2 workers")
    assert p99.times.median == pytest.approx(10.4)
    assert (p50.ours, p50.times.median) == ("rayapp, 2 replicas", pytest.approx(3.0))  # not our fastest at 1 client
    assert requests.met
    assert p99.met
    assert p50.met


def test_a_target_that_was_not_measured_has_no_ratio():
    found = report.ratios(three_servers())

    assert {ratio.target.peer for ratio in found} == {BENTO}
    assert BATCHES not in {ratio.target.load for ratio in found}
    assert report.ratios([m for m in three_servers() if m.group != RAYAPP]) == []


def test_a_missed_target_is_not_met():
    slow = [measured(RAYAPP, "rayapp", MANY, run(1000)), measured(LIT, "LitServe", MANY, run(500))]

    (ratio,) = report.ratios(slow)

    assert (ratio.times.median, ratio.target.factor, ratio.met) == (2.0, 2.5, False)


def test_cpu_of_a_request_is_split_by_role_largest_first():
    spent = report.server_cpu_ms(
        [measured(RAYAPP, "rayapp", MANY, run(100)), measured(RAYAPP, "rayapp", MANY, run(300))]
    )

    assert list(spent.items()) == [(processes.REPLICAS, pytest.approx(1.0)), (processes.HAPROXY, pytest.approx(0.1))]


def test_the_part_of_the_bare_model_is_that_of_its_best_batch_and_processes():
    works = {bare.Work(bare.MODEL, 1): [2000.0], bare.Work(bare.MODEL, 32, 2): [7000.0, 8000.0, 9000.0]}
    runs = [measured(RAYAPP, "rayapp, 2 replicas", MANY, run(2000))]

    found = report.fractions(works, runs)

    assert found == {"rayapp, 2 replicas": {"model, batch of 32, 2 processes": 0.25}}


def test_the_json_of_a_run_says_whether_it_was_valid_and_calm():
    good, bad = measured(RAYAPP, "a", MANY, run()), measured(RAYAPP, "a", MANY, run(non2xx=1), others=0.5)

    assert [report.as_json([m], {}, [])["valid"] for m in (good, bad)] == [True, False]
    assert [report.as_json([m], {}, [])["calm"] for m in (good, bad)] == [True, False]


def test_a_spread_shows_its_median_and_range():
    assert str(Spread.of([12.25, 1234.5, 99.0])) == "99.0 (12.2-1,234)"


# --- the bare model ---------------------------------------------------------------------------------------------------


def test_a_process_of_the_bare_model_counts_images(tmp_path: Path):
    image = tmp_path / "image.png"
    image.write_bytes(picture(0))
    tiny_served(tmp_path)

    rate = bare.measure(bare.Work(bare.ALL, 4), bundle=tmp_path / "1", image=image, seconds=0.05)

    assert rate > 0


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("ray::ServeReplica:rayapp-serve:VisionClassifier", processes.REPLICAS),
        ("ray::ServeReplica:rayapp-serve:Rollout", processes.ROLLOUT),
        ("haproxy", processes.HAPROXY),
        ("ray::HAProxyManager", processes.MANAGER),
        ("ray::ServeController.listen_for_change", processes.CONTROLLER),
        ("raylet", processes.REST),
    ],
)
def test_the_name_of_a_process_tells_its_role(name, role):
    assert processes.role(name) == role


def test_a_server_has_all_its_processes_and_leaves_none(tmp_path: Path):
    (tmp_path / "livez").write_text("yes")
    serve = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    with_child = f"import subprocess, sys; subprocess.run({serve!r})"
    command = servers.Command([sys.executable, "-c", with_child], ready="GET /livez", folder=tmp_path)

    with servers.running(command, tmp_path / "log") as server:
        family = server.processes()
        memory = processes.rss_mib(family)

    assert len(family) == 2
    assert memory[processes.REST] > 5
    assert not any(process.is_running() for process in family)


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path):
    command = servers.Command([sys.executable, "-c", "raise SystemExit('no such model')"], ready="GET /livez")

    with pytest.raises(RayAppError, match="no such model"), servers.running(command, tmp_path / "log"):
        pass


def test_the_cpu_model_is_read_from_cpuinfo(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: another\n")

    assert conditions.cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert conditions.cpu_model(tmp_path / "absent") == os.uname().machine


# --- profiles ---------------------------------------------------------------------------------------------------------

LOOP = "thread (7): AsyncIO Thread: default;Thread.run (threading.py:982)"
STACKS = [
    f"{LOOP} 20",  # of 40 samples of a thread that worked for 2 s
    f"{LOOP};RequestResponseCycle.run_asgi (uvicorn/protocols/http/httptools_impl.py:422);"
    "Replica._wrap_request (ray/serve/_private/replica.py:1);dumps (json/__init__.py:1) 10",
    f"{LOOP};_files (rayapp/serve/asgi.py:5);PreprocessSpec.decode (rayapp/data/preprocess.py:50) 10",
    "thread (8): model_0;_worker (concurrent/futures/thread.py:83);Session.run (onnxruntime/capi/x.py:220) 30",
    "thread (9): MainThread;Worker.main_loop (ray/_private/worker.py:1069) 900",  # it slept
]


def test_a_profile_weighs_threads_by_their_cpu_time_and_not_by_their_samples():
    found = profiling.profile(STACKS, {7: 2.0, 8: 1.0, 9: 0.0})

    assert found.shares() == {
        "event loop, system calls": pytest.approx(1 / 3),
        "model (ONNX Runtime)": pytest.approx(1 / 3),
        "Ray Serve": pytest.approx(1 / 6),  # a helper of the standard library belongs to its caller
        "decode (Pillow)": pytest.approx(1 / 6),
    }
    assert found.top(2) == {
        "Thread.run (threading.py)": pytest.approx(1 / 3),
        "Session.run (onnxruntime/capi/x.py)": pytest.approx(1 / 3),
    }


def test_a_stack_of_unknown_code_is_other():
    assert profiling.layer_of(["main (somewhere.py:1)"]) == profiling.OTHER


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_client_counts_what_is_wrong_and_sends_nothing_twice(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as http:
        url = str(http.base_url).rstrip("/")
        good, broken = load.question([picture(0)]), load.question([b"no image"])
        refused = load.question([b"no image"], wants=400)
        mixed = load.question([picture(0)], judge=lambda version, said: "mixed")
        answers = asyncio.run(_post(url, [good, broken, refused, mixed]))
    nobody = asyncio.run(_post(f"http://127.0.0.1:{servers.free_port()}", [good]))

    assert [a.problem for a in answers] == ["", "status 400", "", "mixed"]
    assert answers[0].version == "1"
    assert load.failures(answers) == {"status 400": 1, "mixed": 1}
    assert [a.problem for a in nobody] == ["ClientConnectorError"]


async def _post(url: str, questions: list[load.Question]) -> list[Answer]:
    async with Client(url) as client:
        return [await client.post(asked) for asked in questions]


def test_an_open_loop_keeps_its_rate_and_a_closed_one_waits(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as http:
        steady, fast = asyncio.run(_both_loops(str(http.base_url).rstrip("/")))

    assert 10 <= len(steady.answers) <= 25
    assert len(fast.answers) > 2
    assert not load.failures([*steady.answers, *fast.answers])


async def _both_loops(url: str) -> tuple[Client, Client]:
    asked = [load.question([picture(seed)]) for seed in range(2)]
    async with Client(url) as steady, Client(url) as fast:
        await load.during(
            asyncio.sleep(0.4),
            lambda until: load.open_loop(steady, asked, rate=50, until=until),
            lambda until: load.closed_loop(fast, asked, clients=2, until=until),
        )
    return steady, fast


def test_full_speed_is_back_when_two_seconds_are_as_fast_as_before():
    before = [answer(n / 10) for n in range(100)]  # 10 a second for 10 s
    slow = [answer(10 + n / 2) for n in range(6)]  # 2 a second for 3 s
    after = [answer(13 + n / 10) for n in range(100)]

    back = load.seconds_to_full_speed([*before, *slow, *after], event_s=10.0, end_s=20.0)

    assert back == pytest.approx(3.0, abs=0.5)
    assert load.seconds_to_full_speed([*before, *slow], event_s=10.0, end_s=20.0) is None
    assert load.longest_gap_s([*before, *slow], start_s=10.0, end_s=20.0) == pytest.approx(7.5)


def test_failed_requests_of_a_kill_are_those_of_its_time():
    fast = [answer(n / 10, problem="ServerDisconnectedError" if 100 <= n < 103 else "") for n in range(200)]
    steady = [answer(5.0, problem="status 503"), answer(11.0, problem="status 503"), answer(12.0)]

    found = chaos.damage(chaos.Kill("replica", at_s=9.9, end_s=19.0), fast, steady)

    assert (found.failed_fast, found.failed_steady) == (3, 1)
    assert found.problems == {"ServerDisconnectedError": 3, "status 503": 1}
    assert found.longest_gap_s == pytest.approx(0.4)


# --- flips ------------------------------------------------------------------------------------------------------------


def test_an_answer_must_be_that_of_the_version_it_names():
    row_k = np.array([0.25, 0.75], dtype=np.float32)
    said = prediction(row_k, ("cat", "dog"))
    right = {"1": {"cat": 0.25, "dog": 0.75}, "2": {"cat": 0.75, "dog": 0.25}}

    assert flips.judge(right, "1", said) == ""
    assert flips.judge(right, "2", said) == "mixed"
    assert flips.judge(right, "3", said) == "mixed"


def test_a_flip_is_done_when_no_request_is_answered_by_the_old_version_any_more():
    old = [answer(n / 10, version="1", took_s=0.01) for n in range(22)]  # until 2.1
    new = [answer(n / 10, version="2", took_s=0.01) for n in range(20, 60)]  # from 2.0: both served for 0.1 s
    flip = flips.Flip("good", "2", start_s=0.0, end_s=6.0)

    found = flips.outcome(flip, old + new)

    assert found.seconds == pytest.approx(2.1, abs=0.11)
    assert found.overlap_s == pytest.approx(0.09)
    assert (found.failed, found.mixed, found.fine) == (0, 0, True)


@pytest.mark.parametrize(
    ("kind", "version", "problem", "fine"),
    [
        ("good", "2", "", True),
        ("good", "2", "mixed", False),
        ("good", "2", "status 503", False),
        ("good", "1", "", False),  # it never came
        ("corrupt", "1", "", True),
        ("corrupt", "2", "", False),  # it came
    ],
)
def test_a_flip_is_fine_when_nobody_suffered_and_the_right_version_answers(kind, version, problem, fine):
    answers = [answer(n / 10, version=version, took_s=0.01) for n in range(1, 20)]
    answers.append(answer(1.5, version=version, problem=problem, took_s=0.01))

    assert flips.outcome(flips.Flip(kind, "2", 0.0, 3.0), answers).fine is fine


@pytest.mark.parametrize("count", [4, 20])
def test_every_kind_of_trouble_is_among_the_flips(count):
    kinds = flips.kinds_of(count)

    assert len(kinds) == count
    assert [kinds.count(kind) for kind in ("corrupt", "stopped", "frozen")] == [1, 1, 1]
    assert kinds[0] == "good"


# --- soak -------------------------------------------------------------------------------------------------------------


def test_growth_is_that_of_the_medians_after_the_warm_up():
    warm_up, steady = [50.0] * 10, [100.0, 101.0, 99.0] * 30

    assert soak.growth(warm_up + steady) == pytest.approx(0.0)
    assert soak.growth(warm_up + [100.0] * 45 + [110.0] * 45) == pytest.approx(0.1)
    assert soak.growth([100.0, 100.0, 500.0, *[100.0] * 20]) == pytest.approx(0.0)  # one outlier is no growth


def test_the_mixed_requests_are_answered_as_they_say(tmp_path: Path):
    questions = soak.mixed_questions()
    with client_of(tiny_served(tmp_path)) as http:
        answers = asyncio.run(_post(str(http.base_url).rstrip("/"), questions))

    assert load.failures(answers) == {}
    assert {asked.path for asked in questions} == {"/predict_image", "/predict_batch"}


def test_the_plot_is_a_png(tmp_path: Path):
    soak.plot([{"replicas": 500.0}, {"replicas": 505.0}], tmp_path / "new" / "soak.png", every_s=10)

    assert Image.open(io.BytesIO((tmp_path / "new" / "soak.png").read_bytes())).format == "PNG"


def test_a_picture_is_a_small_png_that_depends_on_its_seed():
    assert Image.open(io.BytesIO(picture(1))).size == (32, 32)
    assert picture(1) == picture(1) != picture(2)


def test_free_ports_differ_by_name_and_stay():
    ports = servers._FreePorts({"port": 3000})

    assert "{port} {stats} {stats}".format_map(ports) == f"3000 {ports['stats']} {ports['stats']}"
