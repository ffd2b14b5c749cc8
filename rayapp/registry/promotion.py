"""Champion against challenger: a pure decision, and the alias move that carries it out.

The alias 'champion' is what servers follow, so moving it is the deployment. It moves last: whatever fails before leaves
the champion where it was.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rayapp.config.base import REGISTERED_MODEL
from rayapp.config.commands import PromoteSettings, RollbackSettings
from rayapp.errors import PromotionRefused, RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.uris import CHAMPION, ModelVersion

Outcome = Literal["promoted", "forced", "rolled back"]
PREVIOUS_TAG = "previous_champion"


@dataclass(frozen=True)
class Score:
    """What evaluate found for a version on the test split: accuracy with its 95 % interval (0-1) over n images."""

    version: int
    accuracy: float | None = None  # None: it was not evaluated
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    data_digest: str = ""
    name: str = REGISTERED_MODEL

    @classmethod
    def of(cls, version: ModelVersion) -> Score:
        """The score in the tags of a registered version. Raises RegistryError where it is not registered."""
        if version.version is None:
            raise RegistryError(
                f"{version.uri} is not registered, only versions are promoted; train with --register true"
            )
        tags = version.tags
        if "test_accuracy" not in tags:
            return cls(version.version, name=version.name)
        try:
            return cls(
                version=version.version,
                accuracy=float(tags["test_accuracy"]),
                low=float(tags["test_accuracy_low"]),
                high=float(tags["test_accuracy_high"]),
                n=int(tags["test_n"]),
                data_digest=tags["data_digest"],
                name=version.name,
            )
        except (KeyError, ValueError) as error:
            raise RegistryError(
                f"the test_* tags of {version.uri} are damaged ({error}); evaluate it again with:"
                f" rayapp evaluate --model {version.uri}"
            ) from error

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"version {self.version}, not evaluated on the test split"
        return f"version {self.version}: {self.accuracy:.4f} ({self.low:.4f} to {self.high:.4f}, n = {self.n:,})"


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger may become champion, and why."""

    promote: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Promotion:
    """A champion that took its place; previous_version is the one it took it from, if any."""

    verdict: Outcome
    name: str
    model_version: int
    previous_version: int | None
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields that scripts rely on."""
        return {
            "verdict": self.verdict,
            "model_version": self.model_version,
            "model_uri": f"models:/{self.name}/{self.model_version}",
            "previous_version": self.previous_version,
            "reasons": list(self.reasons),
        }


def decide(challenger: Score, champion: Score | None) -> Verdict:
    """Promote what is better on the same test images, or what comes first; champion is None where there is none."""
    if champion is None:
        return Verdict(True, (f"there was no champion yet; {challenger}",))
    if challenger.version == champion.version:
        return Verdict(False, (f"version {challenger.version} is already champion",))
    missing = tuple(
        f"the {role}, version {score.version}, was not evaluated on the test split; do it with:"
        f" rayapp evaluate --model models:/{score.name}/{score.version}"
        for role, score in (("challenger", challenger), ("champion", champion))
        if score.accuracy is None
    )
    if challenger.accuracy is None or champion.accuracy is None:
        return Verdict(False, missing)
    if challenger.data_digest != champion.data_digest:
        return Verdict(
            False,
            (
                f"versions {challenger.version} and {champion.version} were evaluated on different data"
                f" ({challenger.data_digest[:19]} and {champion.data_digest[:19]}), so their accuracies cannot be"
                " compared; train and evaluate both on the same",
            ),
        )
    better = challenger.accuracy > champion.accuracy
    relation = "better" if better else "not better"
    return Verdict(better, (f"{relation} on the test split: {challenger}, champion {champion}",))


def promote(registry: Registry, settings: PromoteSettings) -> Promotion:
    """The promotion of settings.uri to champion.

    Raises PromotionRefused where decide says no and force is not set, and BundleError, force or not, for what no server
    can load.
    """
    version = registry.resolve(settings.uri)
    challenger = Score.of(version)
    champion = registry.holder(version.name, CHAMPION)
    verdict = decide(challenger, Score.of(champion) if champion else None)
    if champion and champion.version == challenger.version:  # nothing that force could change
        raise PromotionRefused(f"nothing to do: {verdict.reasons[0]}", verdict.reasons)
    registry.require_bundle(version)
    if not verdict.promote and not settings.force:
        raise PromotionRefused(
            f"version {challenger.version} is not promoted: {'; '.join(verdict.reasons)}. To promote it all the same:"
            f" rayapp promote --model {version.uri} --force --reason 'WHY'",
            verdict.reasons,
        )
    previous = champion.version if champion else None
    outcome: Outcome = "promoted" if verdict.promote else "forced"
    promotion = Promotion(outcome, version.name, challenger.version, previous, verdict.reasons)
    registry.tag(version, {PREVIOUS_TAG: str(previous or "")} | _record(promotion, settings.reason))
    registry.set_alias(version, CHAMPION)
    return promotion


def rollback(registry: Registry, settings: RollbackSettings, name: str = REGISTERED_MODEL) -> Promotion:
    """The return of the version that was champion before. Rolling back again goes one further back.

    Raises RegistryError where there is no champion, or none before it, and BundleError where no server can load that.
    """
    champion = registry.resolve(f"models:/{name}@{CHAMPION}")
    number = champion.tags.get(PREVIOUS_TAG, "")
    if not number:
        raise RegistryError(
            f"version {champion.version} of '{name}' has no champion before it, so there is nothing to roll back to;"
            " choose a version with: rayapp promote --version VERSION --force --reason 'WHY'"
        )
    version = registry.resolve(f"models:/{name}/{number}")
    registry.require_bundle(version)
    reasons = (settings.reason.strip() or f"rolled back from version {champion.version}",)
    promotion = Promotion("rolled back", name, int(number), champion.version, reasons)
    registry.tag(version, _record(promotion, settings.reason) | {"rolled_back_from": str(champion.version)})
    registry.set_alias(version, CHAMPION)
    return promotion


def _record(promotion: Promotion, reason: str) -> dict[str, str]:
    """Who moved the alias, when and why, as tags of the version it moved to."""
    return {
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "promoted_by": _user(),
        "promotion_verdict": promotion.verdict,
        "promotion_reason": reason.strip() or "; ".join(promotion.reasons),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without an entry for its user
        return "unknown"
