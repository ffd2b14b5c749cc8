"""Settings: a YAML file, then flags; each mistake gets a sentence that names it and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from rayapp.cli import VERBS
from rayapp.config import env
from rayapp.config import train as config
from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load, validate
from rayapp.errors import ConfigError

# The command line is what other people's scripts rely on: a new option is a deliberate act, written down here.
OPTIONS = {
    "train": """
        augment.crop_padding_px augment.cutout_px augment.flip augment.mixup_alpha augment.random_magnitude
        augment.random_ops
        checkpoint.every_minutes checkpoint.every_steps checkpoint.keep checkpoint.notice_every_steps
        compute.compile compute.deterministic compute.device compute.max_failures compute.num_workers
        compute.resize_every_s compute.storage_path compute.threads_per_worker cost.usd_per_hour
        data.dataset data.image_column data.image_px data.label_column data.memory_mb data.on_error data.path
        data.split_seed data.stream
        data.validation_fraction
        dry_run model.freeze_backbone model.frozen_epochs model.init model.name model.pretrained name
        optim.accumulate_steps optim.batch_size optim.clip_norm optim.early_stop_patience optim.epochs
        optim.label_smoothing optim.lr optim.momentum optim.optimizer optim.precision optim.schedule
        optim.sync_batch_norm optim.warmup_fraction optim.weight_decay
        register resume seed tracking.experiment tracking.log_every_steps
    """,
    "tune": """
        augment.crop_padding_px augment.cutout_px augment.flip augment.mixup_alpha augment.random_magnitude
        augment.random_ops
        base budget.minutes budget.trials budget.usd
        checkpoint.every_minutes checkpoint.every_steps checkpoint.keep checkpoint.notice_every_steps
        clean compute.compile compute.deterministic compute.device compute.max_failures compute.num_workers
        compute.resize_every_s compute.storage_path compute.threads_per_worker cost.usd_per_hour
        data.dataset data.image_column data.image_px data.label_column data.memory_mb data.on_error data.path
        data.split_seed data.stream
        data.validation_fraction
        model.freeze_backbone model.frozen_epochs model.init model.name model.pretrained name
        optim.accumulate_steps optim.batch_size optim.clip_norm optim.early_stop_patience optim.epochs
        optim.label_smoothing optim.lr optim.momentum optim.optimizer optim.precision optim.schedule
        optim.sync_batch_norm optim.warmup_fraction optim.weight_decay
        results resume scheduler.grace_epochs scheduler.name scheduler.reduction_factor
        search.algorithm search.latency search.metric search.preset search.seed seed space
        then_train tracking.experiment tracking.log_every_steps trials.at_once trials.cpus trials.gpus
        winner.epochs winner.seeds yes
    """,
    "evaluate": "batch_size data_path model output split",
    "promote": "force model reason version",
    "rollback": "reason",
    "models": "json",
    "predict": "json model url",
    "batch-predict": "batch_size compute.device compute.num_workers data.dataset data.image_column data.path model"
    " output overwrite",
    "serve": """
        app.access_log app.api_keys app.canary.alias app.canary.fraction app.canary.key_header
        app.device app.max_batch app.max_body_bytes app.max_image_pixels app.max_images app.max_queue
        app.max_wait_ms app.model app.num_replicas app.num_threads app.poll_s
        app.request_log.flush_s app.request_log.folder app.request_log.fraction app.request_log.images
        app.max_waiting_bytes app.shadow.alias app.shadow.fraction app.timeout_s app.tracking_uri
        haproxy host model port
    """,
    "demo": "dataset keep num_workers path port",
    "doctor": "json port",
}
SETTINGS: dict[str, Any] = {name: VERBS[name].settings for name in OPTIONS}


def train(*argv: str) -> TrainSettings:
    return load(TrainSettings, argv, prog="rayapp train")


def help_page(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        load(SETTINGS[verb], ["--help"], prog=f"rayapp {verb}")
    assert stopped.value.code == 0
    return capsys.readouterr().out


# --- the command line -------------------------------------------------------------------------------------------------


def test_every_verb_is_listed():
    assert {name: verb.settings for name, verb in VERBS.items()} == SETTINGS


@pytest.mark.parametrize("verb", OPTIONS)
def test_options_are_those_that_were_agreed(verb, capsys):
    options = set(re.findall(r"^  (?:-h, )?--(\S+)", help_page(verb, capsys), flags=re.MULTILINE))

    assert options == {*OPTIONS[verb].split(), "help", "config"}


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_gives_each_option_a_meaning_and_one_default(verb, capsys):
    page = help_page(verb, capsys)
    entries = [" ".join(entry.split()) for entry in re.split(r"^  --", page, flags=re.MULTILINE)]
    said = {entry.split()[0]: entry for entry in entries}

    for name in OPTIONS[verb].split():
        before, *after = said[name].split("[default: ")
        assert len(after) == 1, f"--{name} has {len(after)} defaults"
        assert len(before.split()) >= 3, f"--{name} VALUE has no meaning"
    assert "(default" not in page


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_field_has_a_description(settings):
    def fields(model: type[BaseModel]):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from fields(field.annotation)
            else:
                yield f"{model.__name__}.{name}", field.description

    assert [name for name, description in fields(settings) if not description] == []


def test_help_shows_values_as_they_are_written(capsys):
    page = " ".join(help_page("train", capsys).split())

    assert "usage: rayapp train [--config FILE.yaml] [--option value ...]" in page
    assert "--register true|false Register the bundle" in page
    assert "--optim.batch_size N Images a worker takes at once" in page
    assert "[default: 0.4 for sgd, 0.003 for adamw]" in page
    assert "--resume TEXT Name or MLflow id of a run to go on with" in page


# --- YAML, then flags -------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_leave_the_rest_of_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 0.1, batch_size: 64}\nmodel: {name: resnet18}\nseed: 3\n")

    settings = train("--optim.lr", "0.2", "--config", str(file), "--seed=4")

    assert (settings.optim.lr, settings.optim.batch_size) == (0.2, 64)
    assert (settings.model.name, settings.seed) == ("resnet18", 4)


def test_file_holds_all_that_flags_can_say(tmp_path):
    said = train("--data.dataset", "folder", "--data.path", "x", "--register", "false", "--optim.epochs", "3")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(said.model_dump(mode="json", by_alias=True, exclude_unset=True)))

    assert train("--config", str(file)) == said


def test_empty_file_and_no_flags_are_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("# nothing yet\n")

    assert train("--config", str(file)) == train() == TrainSettings()


def test_stray_environment_changes_nothing(monkeypatch):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("OPTIM__LR", "7")
    monkeypatch.setenv("optim", '{"lr": 7}')

    assert train() == TrainSettings()


@pytest.mark.parametrize(
    ("argv", "dry_run"),
    [
        (["--dry-run"], True),
        (["--dry_run"], True),
        (["--dry-run", "--seed", "1"], True),
        (["--dry-run", "false"], False),
        (["--dry-run=false"], False),
        ([], False),
    ],
)
def test_switch_may_leave_its_value_out(argv, dry_run):
    assert train(*argv).dry_run is dry_run


def test_settings_cannot_be_changed():
    settings = train()

    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.optim.lr = 1.0  # type: ignore[misc]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--optim.lrr 3", "unknown option --optim.lrr. Did you mean 'optim.lr'? See rayapp train --help."),
        ("--optim.accumulate 3", "unknown option --optim.accumulate. Did you mean 'optim.accumulate_steps'?"),
        ("--model.name resnet17", "model.name is 'resnet17'. Did you mean 'resnet18'?"),
        ("--data.dataset cifar11", "data.dataset is 'cifar11'. Did you mean 'cifar10'?"),
        ("--data.on_error ignore", "data.on_error is 'ignore'. Allowed: fail, skip."),
        ("--optim.batch_size 0", "optim.batch_size is '0': it must be greater than or equal to 1."),
        ("--optim.batch_size many", "optim.batch_size is 'many': it must be a valid integer."),
        ("--optim.lr -1", "optim.lr is '-1': it must be greater than 0."),
        ("--optim.lr nan", "optim.lr is 'nan': it must be a finite number."),
        ("--optim.lr inf", "optim.lr is 'inf': it must be a finite number."),
        ("--compute.num_workers 0", "compute.num_workers is '0': it must be a number from 1, or a range as 1..4."),
        ("--data.validation_fraction 0.7", "data.validation_fraction is '0.7': it must be less than 0.5."),
        ("--data.dataset parquet", "data.dataset 'parquet' needs its folder: add --data.path FOLDER"),
        ("--data.path here", "data.path has no effect on data.dataset 'digits'"),
        ("--data.image_column img", "data.image_column has no effect on data.dataset 'digits', which has no columns"),
        ("--data.dataset parquet --data.path x --data.label_column image", "are both 'image'; name two columns"),
        ("--data.image_px 32", "data.image_px has no effect on data.dataset 'digits'"),
        (
            "--model.freeze_backbone",
            "model.freeze_backbone would freeze random weights; add --model.pretrained true or",
        ),
        ("--model.frozen_epochs 2", "model.frozen_epochs would freeze random weights; add --model.pretrained true or"),
        ("--model.init a --model.pretrained", "model.pretrained and model.init 'a' are both given; leave one out"),
        ("--data.memory_mb 128", "data.memory_mb limits a stream; add --data.stream true, or leave it out"),
        ("--data.stream", "data.stream has no effect on data.dataset 'digits', which fits into memory; leave it out"),
        (
            "--compute.num_workers 4..2",
            "compute.num_workers is '4..2': it must be a number from 1, or a range as 1..4.",
        ),
        (
            "--compute.resize_every_s 9",
            "compute.resize_every_s has no effect on a fixed number of workers; say a range",
        ),
        ("--augment.random_magnitude 0.5", "augment.random_magnitude has no effect without augment.random_ops; add or"),
        ("--resume auto", "resume auto goes on with the run of a name: add --name NAME, or say --resume RUN"),
        ("--optim.optimizer adamw --optim.momentum 0.9", "optim.momentum has no effect on optim.optimizer 'adamw'"),
        ("--optim.lr", "argument --optim.lr: expected one argument; see rayapp train --help"),
        ("extra", "unrecognized arguments: extra; see rayapp train --help"),
        ("--config nowhere.yaml", "cannot read --config nowhere.yaml: No such file or directory; give a YAML file"),
    ],
)
def test_wrong_flag_gets_a_sentence(argv, sentence):
    with pytest.raises(ConfigError) as caught:
        train(*argv.split())

    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lrr: 1}", "unknown setting 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("modle: {name: resnet18}", "unknown setting 'modle'. Did you mean 'model'?"),
        ("register_model: false", "unknown setting 'register_model'. Did you mean 'register'?"),
        (
            "zzz: 1",
            "unknown setting 'zzz'. Allowed: augment, checkpoint, compute, cost, data, dry_run, model, name, optim,",
        ),
        ("1: 2", "unknown setting '1'. Allowed: augment"),
        ("optim: 3", "optim is 3: it must be a section with settings of its own."),
        ("optim: {lr: fast}", "optim.lr is 'fast': it must be a valid number."),
        ("model: {name: resnet17}", "model.name is 'resnet17'. Did you mean 'resnet18'?"),
        ("- optim", "holds a list, not sections; allowed: data, model, optim"),
        ("optim: [", "is not YAML: while parsing"),
    ],
)
def test_wrong_file_gets_a_sentence(tmp_path, text, sentence):
    file = tmp_path / "run.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        train("--config", str(file))

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_said_at_once(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lrr: 1}\nmodel: {name: vgg}\n")

    with pytest.raises(ConfigError) as caught:
        train("--config", str(file), "--optim.batch_size", "0")

    assert all(part in str(caught.value) for part in ("'optim.lrr'", "model.name is 'vgg'", "optim.batch_size is '0'"))


@pytest.mark.parametrize(
    ("verb", "argv", "sentence"),
    [
        ("promote", "--force", "force needs a reason for the record: add --reason"),
        ("promote", "--version 0", "version is '0': it must be greater than or equal to 1."),
        ("promote", "--version 3 --model models:/vision/2", "version 3 and model 'models:/vision/2' are both given"),
        ("predict", "", "the following arguments are required: IMAGES; see rayapp predict --help"),
        ("predict", "a.png --url http://x --model m", "model 'm' has no effect with url"),
        ("batch-predict", "--output here", "data.path is missing: add --data.path FOLDER (local or s3://)."),
        ("batch-predict", "--data.path here", "output is missing: add --output FOLDER (local or s3://)."),
        ("batch-predict", "--data.dataset digits", "data.dataset is 'digits'. Allowed: folder, parquet."),
        ("batch-predict", "--data.image_px 3", "unknown option --data.image_px."),
        ("serve", "--app.model m", "app.model has no effect here; use --model."),
        ("serve", "--port 70000", "port is '70000': it must be less than or equal to 65535."),
        ("doctor", "--jsn", "unknown option --jsn. Did you mean 'json'? See rayapp doctor --help."),
        ("evaluate", "--split train", "split is 'train'. Allowed: test, validation."),
        ("tune", "--search.metric val_acuracy", "search.metric is 'val_acuracy'. Did you mean 'val_accuracy'?"),
        ("tune", "--scheduler.name ahsa", "scheduler.name is 'ahsa'. Did you mean 'asha'?"),
        ("tune", "--budget.usd 0", "budget.usd is '0': it must be greater than 0."),
        ("tune", "--results a --clean a", "results and clean are both given; leave one out."),
        ("tune", "--base gone.yaml", "cannot read --base gone.yaml: No such file or directory; give a YAML file"),
        ("tune", "--yes true", "yes answers the question of clean; add --clean NAME"),
    ],
)
def test_wrong_flag_of_another_verb_gets_a_sentence(verb, argv, sentence):
    with pytest.raises(ConfigError) as caught:
        load(SETTINGS[verb], argv.split(), prog=f"rayapp {verb}")

    assert sentence in str(caught.value)


# --- what follows from the settings -----------------------------------------------------------------------------------


def test_promote_names_the_model():
    assert SETTINGS["promote"]().uri == "models:/vision@challenger"
    assert SETTINGS["promote"](version=7).uri == "models:/vision/7"


def test_home_lies_in_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("RAYAPP_HOME")
    monkeypatch.chdir(tmp_path)

    home = env.Home.from_env()

    assert home.folder == Path.cwd() / ".rayapp"
    assert home.tracking_uri == f"sqlite:///{home.folder}/mlflow.db"


def test_home_of_a_submitted_job_is_not_its_copy_of_the_code(monkeypatch, tmp_path):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.delenv("RAYAPP_HOME")
    monkeypatch.chdir(copy)

    assert env.Home.from_env().folder == Path.home() / ".rayapp"


def test_environment_names_the_home_and_the_servers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYAPP_HOME", "state")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("RAY_ADDRESS", "")

    home = env.Home.from_env()

    assert (home.folder, home.tracking_uri) == (Path.cwd() / "state", "http://mlflow:5000")
    assert env.ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert env.ray_address() == "ray://head:10001"


def test_settings_of_a_run_can_be_read_from_what_it_recorded():
    for words in ("--optim.optimizer adamw", "--compute.num_workers 1..3 --optim.momentum 0.8 --augment.random_ops 1"):
        settings = train(*words.split())
        assert validate(TrainSettings, settings.model_dump(mode="json", by_alias=True)) == settings


def test_a_number_of_workers_may_be_a_range():
    assert train("--compute.num_workers", "3").compute.workers == (3, 3)
    assert train("--compute.num_workers", "1..4").compute.workers == (1, 4)
    assert config.ComputeConfig(num_workers=2).workers.is_elastic is False
