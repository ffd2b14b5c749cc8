from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from rayapp.config.commands import PromoteSettings, RollbackSettings
from rayapp.errors import BundleError, PromotionRefused, RegistryError
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.promotion import Score, decide, promote, rollback
from rayapp.registry.tracking import Tracker, mlflow_client
from tests.support.stores import registered


def score(version: int, accuracy: float | None, *, data: str = "sha256:1", n: int = 10_000) -> Score:
    if accuracy is None:
        return Score(version)
    return Score(version, accuracy, accuracy - 0.01, accuracy + 0.01, n, data)


def evaluate(registry: Registry, version: ModelVersion, accuracy: float, data_digest: str = "sha256:1") -> None:
    """What evaluate writes to a version."""
    low, high = repr(accuracy - 0.01), repr(accuracy + 0.01)
    tags = {"test_accuracy": repr(accuracy), "test_accuracy_low": low, "test_accuracy_high": high, "test_n": "500"}
    registry.tag(version, tags | {"data_digest": data_digest})


@pytest.fixture
def versions(tracker: Tracker, registry: Registry, bundle_folder: Path) -> list[ModelVersion]:
    """Versions 1, 2 and 3, of rising test accuracy."""
    made = [registered(tracker, registry, bundle_folder) for _ in range(3)]
    for version, accuracy in zip(made, (0.7, 0.8, 0.9), strict=True):
        evaluate(registry, version, accuracy)
    return made


def champion(registry: Registry) -> ModelVersion:
    return registry.resolve("models:/vision@champion")


# --- the decision -----------------------------------------------------------------------------------------------------


def test_the_first_champion_needs_no_comparison() -> None:
    verdict = decide(score(1, 0.5), None)
    assert verdict.promote
    assert verdict.reasons == ("there was no champion yet; version 1: 0.5000 (0.4900 to 0.5100, n = 10,000)",)
    assert decide(score(1, None), None).reasons == (
        "there was no champion yet; version 1, not evaluated on the test split",
    )


def test_a_better_challenger_is_promoted() -> None:
    verdict = decide(score(2, 0.8), score(1, 0.7))
    assert verdict.promote
    assert verdict.reasons == (
        "better on the test split: version 2: 0.8000 (0.7900 to 0.8100, n = 10,000), champion version 1: 0.7000"
        " (0.6900 to 0.7100, n = 10,000)",
    )


@pytest.mark.parametrize("accuracy", [0.7, 0.6999])
def test_a_challenger_that_is_not_better_is_refused_with_both_figures(accuracy: float) -> None:
    verdict = decide(score(2, accuracy), score(1, 0.7))
    assert not verdict.promote
    (reason,) = verdict.reasons
    assert reason.startswith(f"not better on the test split: version 2: {accuracy:.4f} (")
    assert reason.endswith("champion version 1: 0.7000 (0.6900 to 0.7100, n = 10,000)")


@pytest.mark.parametrize(
    ("challenger", "current", "missing"), [(None, 0.7, [3]), (0.7, None, [1]), (None, None, [3, 1])]
)
def test_what_was_not_evaluated_is_refused_with_the_command(
    challenger: float | None, current: float | None, missing: list[int]
) -> None:
    verdict = decide(score(3, challenger), score(1, current))
    assert not verdict.promote
    assert len(verdict.reasons) == len(missing)
    for version, reason in zip(missing, verdict.reasons, strict=True):
        assert "was not evaluated on the test split" in reason
        assert reason.endswith(f"rayapp evaluate --model models:/vision/{version}")


def test_accuracies_on_different_data_are_not_compared() -> None:
    verdict = decide(score(2, 0.9, data="sha256:aaa"), score(1, 0.7, data="sha256:bbb"))
    assert not verdict.promote
    assert "versions 2 and 1 were evaluated on different data (sha256:aaa and sha256:bbb)" in verdict.reasons[0]


def test_the_champion_is_not_promoted_again() -> None:
    assert decide(score(1, 0.9), score(1, 0.9)).reasons == ("version 1 is already champion",)


# --- the move ---------------------------------------------------------------------------------------------------------


def test_promotion_moves_the_alias_and_records_who_when_and_why(
    registry: Registry, versions: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    first = promote(registry, PromoteSettings(version=1))
    assert (first.verdict, first.model_version, first.previous_version) == ("promoted", 1, None)
    second = promote(registry, PromoteSettings(version=2, reason="more data"))
    assert second.to_dict() == {
        "verdict": "promoted",
        "model_version": 2,
        "model_uri": "models:/vision/2",
        "previous_version": 1,
        "reasons": list(second.reasons),
    }
    now = champion(registry)
    assert (now.version, now.aliases) == (2, ("champion",))
    assert now.tags["previous_champion"] == "1"
    assert now.tags["promoted_by"] == "alice"
    assert now.tags["promotion_verdict"] == "promoted"
    assert now.tags["promotion_reason"] == "more data"
    assert datetime.fromisoformat(now.tags["promoted_at"]).utcoffset() is not None


def test_the_challenger_is_promoted_by_default(registry: Registry, versions: list[ModelVersion]) -> None:
    assert promote(registry, PromoteSettings()).model_version == 3
    assert champion(registry).aliases == ("challenger", "champion")


def test_a_refusal_changes_nothing_and_names_the_way_out(registry: Registry, versions: list[ModelVersion]) -> None:
    promote(registry, PromoteSettings(version=2))
    with pytest.raises(PromotionRefused) as caught:
        promote(registry, PromoteSettings(version=1))
    assert str(caught.value).startswith("version 1 is not promoted: not better on the test split: version 1: 0.7000")
    assert str(caught.value).endswith("rayapp promote --model models:/vision/1 --force --reason 'WHY'")
    assert caught.value.reasons[0].startswith("not better")
    assert champion(registry).version == 2
    assert "promotion_verdict" not in registry.resolve("models:/vision/1").tags


def test_force_moves_the_alias_and_says_so_in_the_record(registry: Registry, versions: list[ModelVersion]) -> None:
    promote(registry, PromoteSettings(version=2))
    promotion = promote(registry, PromoteSettings(version=1, force=True, reason="faster"))
    assert promotion.verdict == "forced"
    assert promotion.reasons[0].startswith("not better on the test split")
    tags = champion(registry).tags
    assert (tags["promotion_verdict"], tags["promotion_reason"], tags["previous_champion"]) == ("forced", "faster", "2")


def test_force_does_not_make_the_champion_its_own_predecessor(registry: Registry, versions: list[ModelVersion]) -> None:
    promote(registry, PromoteSettings(version=1))
    promote(registry, PromoteSettings(version=2))
    with pytest.raises(PromotionRefused, match=r"nothing to do: version 2 is already champion"):
        promote(registry, PromoteSettings(version=2, force=True, reason="again"))
    assert champion(registry).tags["previous_champion"] == "1"


def test_a_challenger_without_evaluation_is_refused(
    tracker: Tracker, registry: Registry, versions: list[ModelVersion], bundle_folder: Path
) -> None:
    promote(registry, PromoteSettings(version=1))
    registered(tracker, registry, bundle_folder)
    with pytest.raises(
        PromotionRefused, match=r"challenger, version 4, was not evaluated .*evaluate --model models:/vis"
    ):
        promote(registry, PromoteSettings())


def test_damaged_figures_are_not_compared(registry: Registry, versions: list[ModelVersion]) -> None:
    registry.tag(versions[0], {"test_accuracy": "good"})
    with pytest.raises(
        RegistryError, match=r"tags of models:/vision/1 are damaged .*rayapp evaluate --model models:/vi"
    ):
        promote(registry, PromoteSettings(version=1))


def test_only_registered_versions_are_promoted(
    tracker: Tracker, registry: Registry, run_id: str, bundle_folder: Path
) -> None:
    registry.log_bundle(run_id, bundle_folder)
    with pytest.raises(RegistryError, match=f"runs:/{run_id}/model is not registered, only versions are promoted"):
        promote(registry, PromoteSettings(model=f"runs:/{run_id}/model"))


def test_rollback_goes_back_one_champion_at_a_time(registry: Registry, versions: list[ModelVersion]) -> None:
    for number in (1, 2, 3):
        promote(registry, PromoteSettings(version=number))
    back = rollback(registry, RollbackSettings(reason="angry users"))
    assert (back.verdict, back.model_version, back.previous_version) == ("rolled back", 2, 3)
    assert back.reasons == ("angry users",)
    tags = champion(registry).tags
    assert (tags["promotion_verdict"], tags["promotion_reason"]) == ("rolled back", "angry users")
    assert (tags["previous_champion"], tags["rolled_back_from"]) == ("1", "3")
    assert rollback(registry, RollbackSettings()).model_version == 1
    with pytest.raises(
        RegistryError, match=r"version 1 of 'vision' has no champion before it, so there is nothing to r"
    ):
        rollback(registry, RollbackSettings())
    assert champion(registry).version == 1


def test_rollback_without_a_champion_says_how_to_get_one(registry: Registry, versions: list[ModelVersion]) -> None:
    with pytest.raises(RegistryError, match=r"alias 'champion' of 'vision' not found \(aliases: challenger -> 3\)"):
        rollback(registry, RollbackSettings())


def test_force_is_for_the_gate_and_not_for_what_no_server_can_load(
    registry: Registry, versions: list[ModelVersion], uri: str, home: Path
) -> None:
    """A version of another tool became champion by force, and every server that started failed."""
    promote(registry, PromoteSettings(version=2))
    (home / "foreign").mkdir()
    (home / "foreign" / "model.pkl").write_bytes(b"sklearn")
    with mlflow_client(uri) as client:
        foreign = client.create_model_version("vision", (home / "foreign").as_uri(), versions[0].run_id)
    with pytest.raises(BundleError, match=r"models:/vision/4 holds no bundle: .* lacks manifest.json, model.onnx"):
        promote(registry, PromoteSettings(version=int(foreign.version), force=True, reason="why not"))
    assert champion(registry).version == 2


def test_a_version_whose_artifacts_are_gone_is_not_rolled_back_to(
    registry: Registry, versions: list[ModelVersion]
) -> None:
    promote(registry, PromoteSettings(version=1))
    promote(registry, PromoteSettings(version=2))
    shutil.rmtree(url2pathname(urlsplit(versions[0].source).path))
    with pytest.raises(BundleError, match="models:/vision/1 holds no bundle"):
        rollback(registry, RollbackSettings())
    assert champion(registry).version == 2
