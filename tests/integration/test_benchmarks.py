"""What the benchmarks make of what they measured: ratios, targets, and that a run which failed or was disturbed has no
figure."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import commands, flips, load, servers, serving, soak, training, tuning, wrk
from benchmarks.load import Answer, Client
from benchmarks.pictures import picture
from benchmarks.report import Column, Finding, Report, Row, Versus
from benchmarks.serving import MANY, ONE
from benchmarks.training import AS_USUAL, FIT_2, PLAIN_2, PLAIN_2_CL, RAYAPP_2, Epoch
from rayapp.errors import RayAppError
from tests.support.bundles import tiny_served
from tests.support.serving import client_of

WRK = """Running 5s test @ http://127.0.0.1:3000
RESULT requests=11342 seconds=5.021 p50_ms=13.900 p90_ms=18.200 p99_ms=27.010 non2xx=0 socket=0 timeout=0
"""
COLUMNS = {"images/s": Column(",.0f"), "s": Column(), "loss": Column(".4f", timed=False)}


def rows_of(name: str, *rates: float, others: float = 0.0, failed: str = "", loss: float = 1.0) -> list[Row]:
    return [
        Row(name, n, {"images/s": rate, "s": 100 / rate, "loss": loss}, others, failed=failed)
        for n, rate in enumerate(rates)
    ]


def shown(found: Report, findings: list[Finding], *, judge: bool = True) -> tuple[str, dict]:
    console = Console(width=200, record=True, file=io.StringIO())
    found.show(console)
    result = found.conclude(console, findings, judge=judge, speed_fails=True)
    return console.export_text(), result


# --- ratios -----------------------------------------------------------------------------------------------------------


def test_ratios_compare_within_a_round_and_against_the_peers_best():
    # the second round met a slow minute of the machine
    found = Report(COLUMNS, rows_of("ours", 300, 100, 300) + rows_of("a", 150, 50, 150) + rows_of("b", 100, 34, 90))

    (rate,) = found.ratio(Versus("rate", "images/s", "ours", ("a", "b"), 2.0))
    (time,) = found.ratio(Versus("time", "s", "ours", ("a", "b"), 2.1, least=True))

    assert (rate.against, rate.value, rate.said, rate.met) == ("a", 2.0, "2.00", True)
    assert (time.against, time.value, time.met) == ("a", pytest.approx(2.0), False)
    assert found.ratio(Versus("rate", "images/s", "ours", ("c",), 2.0)) == []


def test_a_pair_has_a_difference_and_from_two_pairs_on_its_standard_error():
    ours, theirs = rows_of("ours", 5, 7, 3, 5), rows_of("theirs", 4, 4, 4, 4)

    several = Report(COLUMNS, ours + theirs).difference("any", "images/s", "ours", "theirs")
    one = Report(COLUMNS, ours[:1] + theirs[:1]).difference("any", "images/s", "ours", "theirs")
    assert several
    assert one
    (finding, error), (_, single) = several, one

    assert (finding.value, error, single) == (1.0, pytest.approx(1.633 / 2, abs=1e-3), None)


@pytest.mark.parametrize(("value", "at_most", "met"), [(2.0, False, True), (1.9, False, False), (2.1, True, False)])
def test_a_target_is_met_or_missed(value: float, at_most: bool, met: bool):
    finding = Finding("any", "ours", value, "2", limit=2.0, at_most=at_most)
    text, result = shown(Report(COLUMNS, rows_of("ours", 1)), [finding])

    assert (finding.met, result["passed"], result["targets"][0]["met"]) == (met, met, met)
    assert ("MISSED" not in text) is met


# --- validity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "word"), [({"others": 0.31}, "DISTURBED"), ({"failed": "6 requests failed"}, "INVALID")]
)
def test_a_run_that_failed_or_was_disturbed_is_no_figure(bad: dict, word: str):
    rows = rows_of("ours", 300, 301) + rows_of("theirs", 777, **bad)
    found = Report(COLUMNS, rows)
    findings = found.ratio(Versus("rate", "images/s", "ours", ("theirs",), 0.1))

    text, result = shown(found, findings)

    assert word in text
    assert "777" not in text
    assert (findings[0].value, findings[0].met) == (None, None)
    assert "not judged" in text
    assert (result["valid"], result["calm"]) == (word != "INVALID", word != "DISTURBED")
    assert result["passed"] is (word != "INVALID")
    assert word in found.line(rows[-1])


def test_a_bad_round_is_in_no_median_and_in_no_ratio():
    disturbed = Row("ours", 1, {"images/s": 9.0, "s": 9.0}, others_cpu=0.5)
    found = Report(COLUMNS, [rows_of("ours", 200)[0], disturbed, *rows_of("theirs", 100, 1)])

    (finding,) = found.ratio(Versus("rate", "images/s", "ours", ("theirs",), 2.0))

    assert str(found.spread("ours", "images/s").median) == "200"
    assert finding.said == "2.00"


def test_what_does_not_depend_on_time_counts_from_a_disturbed_run_but_not_from_a_failed_one():
    found = Report(COLUMNS, rows_of("a", 5, others=0.9, loss=0.25) + rows_of("b", 5, failed="it did", loss=0.75))

    assert found.spread("a", "loss").median == 0.25
    assert found.spread("a", "s") is None
    assert found.spread("b", "loss") is None
    assert "loss" not in shown(found, [])[1]["runs"][1]


def test_a_figure_that_a_contestant_does_not_have_is_empty_and_not_called_disturbed():
    lossless = Row("b", 0, {"images/s": 5.0, "s": 20.0}, others_cpu=0.5)

    assert shown(Report(COLUMNS, [*rows_of("a", 5), lossless]), [])[0].count("DISTURBED") == 2  # images/s and s


def test_a_quick_look_judges_nothing():
    text, result = shown(
        Report(COLUMNS, rows_of("ours", 1)), [Finding("any", "ours", 1.0, "1", limit=2.0)], judge=False
    )

    assert result["passed"]
    assert "MISSED" not in text


# --- serving ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_failure_makes_a_run_of_wrk_invalid():
    good, bad = wrk.parse(WRK), wrk.parse(WRK.replace("non2xx=0 socket=0 timeout=0", "non2xx=3 socket=2 timeout=1"))

    assert serving.row_of("any", MANY, good, {}).figures["images/s"] == pytest.approx(2258.9, abs=0.1)
    assert serving.row_of("any", MANY, good, {}).remark == ""
    assert serving.row_of("any", MANY, bad, {}).remark == "INVALID: 6 requests failed"
    with pytest.raises(RayAppError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:3000 Connection refused")


def _served(name: str, run: wrk.Run, load: wrk.Load = MANY) -> Row:
    return serving.row_of(name, load, run, {"replicas": 2.0, "HAProxy": 0.2})


def test_ours_is_one_configuration_for_all_targets_and_the_peer_has_its_best_for_each():
    def run(rate: int, p50_ms: float, p99_ms: float) -> wrk.Run:
        return wrk.Run(rate * 10, 10.0, p50_ms, p99_ms, p99_ms, 0, 0, 0)

    rows = [_served("rayapp, 1 replica", run(1300, 9, 40)), _served("rayapp, 2 replicas", run(2400, 9, 25))]
    rows += [_served("BentoML, 1 worker", run(200, 9, 300)), _served("BentoML, 2 workers", run(150, 9, 260))]
    rows += [_served("rayapp, 2 replicas", run(99, 1.5, 9), ONE), _served("rayapp, 1 replica", run(99, 1, 9), ONE)]
    rows += [_served("BentoML, 1 worker", run(99, 4.5, 9), ONE)]

    requests, p99, p50 = serving.findings(Report(serving.COLUMNS, rows))

    assert (requests.ours, requests.against, requests.value) == ("rayapp, 2 replicas", "BentoML, 1 worker", 12.0)
    assert (p99.against, p99.value, p99.met) == ("BentoML, 2 workers", pytest.approx(10.4), True)
    assert (p50.ours, p50.value) == ("rayapp, 2 replicas", 3.0)  # not our fastest at 1 client
    spent = serving.cpu_ms(rows[:1])
    assert next(iter(spent.items())) == ("replicas", pytest.approx(2000 / 13000))


def test_a_client_counts_what_is_wrong_and_sends_nothing_twice(tmp_path: Path):
    with client_of(tiny_served(tmp_path)) as http:
        url = str(http.base_url).rstrip("/")
        good, broken = load.question([picture(0)]), load.question([b"no image"])
        mixed = load.question([picture(0)], judge=lambda version, said: "mixed")
        answers = asyncio.run(_post(url, [good, broken, load.question([b"no image"], wants=400), mixed]))
        mixture = asyncio.run(_post(url, soak.mixed_questions()))
    nobody = asyncio.run(_post(f"http://127.0.0.1:{servers.free_port()}", [good]))

    assert [a.problem for a in answers] == ["", "status 400", "", "mixed"]
    assert load.failures(mixture) == {}
    assert [a.problem for a in nobody] == ["ClientConnectorError"]


async def _post(url: str, questions: list[load.Question]) -> list[Answer]:
    async with Client(url) as client:
        return [await client.post(asked) for asked in questions]


def answer(done_s: float, *, version: str = "1", problem: str = "") -> Answer:
    return Answer(done_s - 0.01, done_s, version, problem)


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
    answers = [answer(n / 10, version=version) for n in range(1, 20)]
    answers.append(answer(1.5, version=version, problem=problem))

    assert flips.outcome(flips.Flip(kind, "2", 0.0, 3.0), answers).fine is fine


# --- training and tuning ----------------------------------------------------------------------------------------------


def trained(name: str, epoch_s: float, *, number: int = 0, loss: float = 1.0) -> Row:
    epochs = [Epoch(900, 10.0 + n * epoch_s, epoch_s - 0.1, loss, val_accuracy=0.5) for n in range(3)]
    return training.row_of(name, number, epochs, commands.Done("", 1.0, 1000.0, 0.0))


def test_an_epoch_lasts_until_the_next_one_ends_and_the_first_is_not_counted():
    epochs = (Epoch(900, 30.0, 20.0, 2.0, 0.1), Epoch(900, 32.5, 2.4, 1.9, 0.2), Epoch(900, 35.5, 2.4, 1.8, 0.3))

    figures = training.row_of("any", 0, epochs, commands.Done("", 1.0, 1000.0, 0.0)).figures

    assert (figures["s an epoch"], figures["images/s"]) == (pytest.approx(2.75), pytest.approx(900 / 2.75))
    assert figures["start-up s"] == pytest.approx(9.0)


def test_training_is_compared_with_the_plain_script_and_with_fit_alone():
    rows = [trained(RAYAPP_2, 2.0), trained(PLAIN_2, 4.0), trained(PLAIN_2_CL, 2.2), trained(AS_USUAL, 5.0)]
    same, usual, ray = training.findings(Report(training.COLUMNS, [*rows, trained(FIT_2, 1.9)]), "cpu")[:3]

    assert (same.against, same.value, same.met) == (PLAIN_2_CL, pytest.approx(1.1), True)
    assert (usual.value, usual.met) == (pytest.approx(2.5), False)
    assert (ray.value, ray.met) == (pytest.approx(0.95), False)  # Ray may cost a fortieth of an epoch


def test_loss_curves_are_equal_within_the_noise_of_the_rounds():
    def met(losses: tuple[float, ...]) -> bool | None:
        ours = [trained(RAYAPP_2, 1.0, number=n, loss=loss) for n, loss in enumerate((1.00, 1.02, 1.04))]
        theirs = [trained(PLAIN_2, 1.0, number=n, loss=loss) for n, loss in enumerate(losses)]
        return training.findings(Report(training.COLUMNS, ours + theirs), "cpu")[-1].met

    assert [met((1.01, 1.03, 1.06)), met((1.21, 1.23, 1.26)), met((1.21,))] == [True, False, None]


def swept(name: str, seed: int = 0, **changes: float) -> Row:
    """10 trials of 9 epochs, two at once, that ran 30 epochs of 5 s."""
    said = {"trials": 10, "failed": 0, "epochs": 30, "fit_seconds": 150.0, "seconds": 79.0, "command_s": 79.5}
    said |= {"best_val_accuracy": 0.50} | changes
    return tuning.row_of(name, seed, said, at_once=2, full_epochs=90, recorded=int(changes.get("recorded", 10)))


def test_a_search_is_judged_by_what_stopping_saved_and_lost():
    good = [swept(tuning.ASHA), swept(tuning.RANDOM, best_val_accuracy=0.5049)]
    bad = [swept(tuning.ASHA, epochs=37, best_val_accuracy=0.49, recorded=9, seconds=90.0), swept(tuning.RANDOM)]

    found = [[f.met for f in tuning.findings(Report(tuning.COLUMNS, rows))] for rows in (good, bad)]

    assert found == [[True] * 5, [False, False, True, False, False]]
    assert swept("any").figures["overhead s, search"] == pytest.approx((2 * 79 - 150) / 10)


@pytest.mark.parametrize(
    ("differences", "met"),
    [([-0.01, 0.03, -0.03], True), ([-0.02, -0.03, -0.01], False), ([0.0, 0.0, 0.0], True), ([-0.02], None)],
)
def test_the_best_may_be_worse_than_optunas_by_one_standard_error(differences: list[float], met: bool | None):
    rows = [swept(tuning.OURS, n, best_val_accuracy=0.5 + d) for n, d in enumerate(differences)]
    rows += [swept(tuning.THEIRS, n, command_s=70.0) for n in range(len(differences))]

    whole, *_, best = tuning.findings(Report(tuning.COLUMNS, rows))

    assert best.met is met
    assert (whole.value, whole.met) == (pytest.approx(70 / 79.5), False)
