"""Verbs with something to show: call the room, show its result to a person, return it as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from rayapp.config.commands import (
    EvaluateSettings,
    ModelsSettings,
    PredictSettings,
    PromoteSettings,
    RollbackSettings,
)
from rayapp.config.env import Home
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError
from rayapp.terminal import table_console

Json = dict[str, Any]


def tune(settings: TuneSettings, home: Home) -> Json:
    """What a sweep found; with results what it has found so far, with clean what was removed."""
    from rayapp.tune import record

    if settings.clean:
        _ask(f"remove sweep '{settings.clean}' with its checkpoints?", yes=settings.yes)
        return {"removed": record.clean(home, settings.clean)}
    if settings.results:
        tuned = record.results(home, settings.results)
        from rayapp.tune.report import show  # which draws pictures too: imports that take seconds

        show(tuned, _console(wide=True))
        return tuned.to_dict()
    from rayapp.tune import driver

    return driver.tune(settings, home, _console(wide=True)).to_dict()


def evaluate(settings: EvaluateSettings, home: Home) -> Json:
    """The report's main figures; the classes are shown as a table."""
    from rayapp.registry.evaluation import evaluate_version as run

    evaluation = run(settings, home)
    scores = evaluation.report.scores
    console, accuracy = _console(), scores.accuracy
    console.print(_classes_table(scores))
    line = Text.assemble(
        f"{settings.split} accuracy ", (f"{accuracy.value:.4f}", "bold"), f" (95 % interval {accuracy.low:.4f} to"
        f" {accuracy.high:.4f}, n = {scores.num_images:,}), loss {scores.loss:.4f}, ECE {scores.ece:.4f};"
        f" report and plots in {evaluation.folder}",
    )  # fmt: skip
    console.print(line, highlight=False, soft_wrap=True)
    return evaluation.to_dict()


def _classes_table(scores: Any) -> Table:
    table = Table("class", "precision", "recall", "F1", "images", box=None, header_style="bold")
    for c in sorted(scores.classes, key=lambda c: c.f1):
        table.add_row(_plain(c.name), f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", f"{c.support:,}")
    return table


def promote(settings: PromoteSettings, home: Home) -> Json:
    """What was promoted and why; a refusal is a PromotionRefused."""
    from rayapp.registry.models import Registry
    from rayapp.registry.promotion import promote as run

    return _shown_promotion(run(Registry(home.tracking_uri), settings))


def rollback(settings: RollbackSettings, home: Home) -> Json:
    """Which version is champion again."""
    from rayapp.registry.models import Registry
    from rayapp.registry.promotion import rollback as run

    return _shown_promotion(run(Registry(home.tracking_uri), settings))


def models(settings: ModelsSettings, home: Home) -> Json | None:
    """The registered versions: a table on stdout, or with json one line."""
    from rayapp.registry.models import Registry

    versions = Registry(home.tracking_uri).versions()
    rows: list[Json] = [
        {
            "version": v.version,
            "aliases": list(v.aliases),
            "val_accuracy": _number(v.tags.get("val_accuracy")),
            "test_accuracy": _number(v.tags.get("test_accuracy")),
            "test_accuracy_low": _number(v.tags.get("test_accuracy_low")),
            "test_accuracy_high": _number(v.tags.get("test_accuracy_high")),
            "n": _number(v.tags.get("test_n")),
            "created": v.created.isoformat(timespec="seconds"),
            "run_id": v.run_id,
        }
        for v in versions
    ]
    if settings.json_output:
        return {"models": rows}
    console = table_console()
    between = "\n" if console.is_terminal else ", "
    console.print(_models_table(rows, between) if rows else "no model is registered yet; make one with: rayapp train")
    return None


def _models_table(rows: list[Json], between: str) -> Table:
    """Fits 80 columns: the run is shortened, MLflow finds it by its beginning too. between: what parts aliases."""
    titles = ("version", "aliases", "val", "test", "95 % interval", "n", "created", "run")
    table = Table(*titles, box=None, pad_edge=False, header_style="bold")
    # however narrow the terminal, aliases are never cut: what is promoted and served goes by them
    table.columns[1].min_width = max(len(alias) for row in rows for alias in ["aliases", *row["aliases"]])
    for row in rows:
        test, interval, n = "-", "not evaluated", "-"
        if row["test_accuracy"] is not None:
            test, n = f"{row['test_accuracy']:.4f}", f"{row['n']:.0f}"
            interval = f"{row['test_accuracy_low']:.3f}-{row['test_accuracy_high']:.3f}"
        val = "-" if row["val_accuracy"] is None else f"{row['val_accuracy']:.4f}"
        aliases = _plain(between.join(row["aliases"]))
        table.add_row(str(row["version"]), aliases, val, test, interval, n, str(row["created"])[:10], row["run_id"][:6])
    return table


def predict(settings: PredictSettings, home: Home) -> Json | None:
    """The prediction of each file: a table on stdout, or with json one line."""
    from rayapp.predict import predict_files

    predictions = predict_files(settings, home)
    if settings.json_output:
        return {"predictions": predictions}
    table_console().print(_predictions_table(settings.images, predictions))
    return None


def _predictions_table(images: Iterable[object], predictions: Iterable[Json]) -> Table:
    table = Table("file", "class", "confidence", "next", header_style="bold")
    for path, p in zip(images, predictions, strict=True):
        others = sorted(p["probabilities"].items(), key=lambda item: -item[1])[1:3]
        runners_up = ", ".join(f"{name} {share:.1%}" for name, share in others)
        table.add_row(_plain(path), _plain(p["predicted_class"]), f"{p['confidence']:.1%}", _plain(runners_up))
    return table


def _ask(question: str, *, yes: bool) -> None:
    """Returns if a person at the terminal says yes. Raises ConfigError where they do not, or where nobody is."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} nobody can be asked here; add --yes")
    if Confirm.ask(_plain(question), console=_console(), default=False):
        return
    raise ConfigError("nothing was removed")


def _console(*, wide: bool = False) -> Console:
    """stderr; wide: where it is no terminal, whose width counts, as wide as a table of many columns needs."""
    console = Console(stderr=True)
    return Console(stderr=True, width=160) if wide and not console.is_terminal else console


def _plain(text: object) -> Text:
    """A name from outside as it is: rich reads no markup or emoji in it. A byte that is not UTF-8 becomes \\x.."""
    return Text(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _shown_promotion(promotion: Any) -> Json:
    console = _console()
    before = f" (before: version {promotion.previous_version})" if promotion.previous_version else ""
    version = (str(promotion.model_version), "bold")
    console.print(Text.assemble(f"{promotion.verdict}: champion is version ", version, before), highlight=False)
    for reason in promotion.reasons:
        console.print(_plain(f"  {reason}"), highlight=False, soft_wrap=True)
    result: Json = promotion.to_dict()
    return result
