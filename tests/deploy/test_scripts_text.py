"""The text of the scripts of cluster/scripts, and what they share with other files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.deploy.machine import OURS, PINS, SCRIPTS, STARTED
from tests.deploy.tools import ROOT, VERSIONS, kube_validate, python, run, tool


def shellcheck(*files: Path) -> subprocess.CompletedProcess[str]:
    return run([tool("shellcheck"), "-S", "warning", "-x", *files], ok=False)


def missing_manners(path: Path) -> list[str]:
    """What a script that people start lacks."""
    text = path.read_text()
    wanted = {"set -euo pipefail": "strict mode", "usage()": "--help", "\nbegin ": "arguments and settings"}
    return [f"{path.name}: no {why} ({what.strip()!r})" for what, why in wanted.items() if what not in text]


def newer_than_bash_3_2(path: Path) -> list[str]:
    """Lines with what the bash of macOS does not know."""
    newer = re.compile(
        r"declare -A|local -A|mapfile|readarray|\$\{\w+(,,|\^\^|@[A-Z])|\|&|&>>|\[\[ -v|coproc|local -n|\$EPOCH"
    )
    lines = enumerate(path.read_text().splitlines(), 1)
    found = [f"{path.name}:{n}: {line.strip()}" for n, line in lines if newer.search(line.split(" # ")[0])]
    bare = re.compile(r'(?<!\+)"\$\{(CLEANUPS|ARGS|options|wanted)\[@\]\}"')
    return found + [f"{path.name}: {hit[0]} of an empty array ends bash 3.2" for hit in bare.finditer(path.read_text())]


def test_scripts_are_clean() -> None:
    done = shellcheck(*OURS)
    assert not done.returncode, done.stdout
    for path in OURS:
        run(["bash", "-n", path])
        assert not newer_than_bash_3_2(path)
    for path in STARTED:
        assert not missing_manners(path)
        assert path.stat().st_mode & 0o111, f"{path} cannot be executed"


def test_the_checks_of_the_text_bite(tmp_path: Path) -> None:
    text = (SCRIPTS / "ops/backup.sh").read_text()
    unquoted = tmp_path / "unquoted.sh"
    unquoted.write_text(
        "#!/usr/bin/env bash\nset -euo pipefail\nfor file in $(ls $1); do rm $file; done\nif [ $1 = ]; then :; fi\n"
    )
    assert "unquoted.sh" in shellcheck(unquoted).stdout
    loose = tmp_path / "loose.sh"
    loose.write_text(text.replace("set -euo pipefail\n", ""))
    assert missing_manners(loose) == ["loose.sh: no strict mode ('set -euo pipefail')"]
    modern = tmp_path / "modern.sh"
    modern.write_text('declare -A table\nfor word in "${ARGS[@]}"; do :; done\n')
    assert len(newer_than_bash_3_2(modern)) == 2


def test_versions_of_all_charts_are_pinned() -> None:
    missing = [name for name in PINS if name not in VERSIONS]
    assert not missing, f"cluster/versions.env does not set {missing}"


def test_the_example_has_every_setting() -> None:
    example = (ROOT / "cluster/settings.env.example").read_text()
    names = {
        line.split("=")[0].removeprefix("DEV_").removeprefix("PROD_") for line in re.findall(r"^\w+=", example, re.M)
    }
    lib = (SCRIPTS / "lib.sh").read_text()
    assert names == set(
        re.findall(r"[A-Z_]+", " ".join(re.findall(r'^SETTING_NAMES="(?:\$SETTING_NAMES )?(.*)"', lib, re.M)))
    )
    assert run(["git", "check-ignore", "cluster/settings.env", "cluster/.state/x"], ok=False).returncode in (0, 128)


def test_render_gets_what_it_asks_for() -> None:
    wanted = re.search(r"^for name in ([A-Z_ ]+); do", (SCRIPTS / "render.sh").read_text(), re.M)
    assert wanted
    exported = set(re.findall(r"[A-Z_]{4,}", (SCRIPTS / "lib/terraform.sh").read_text().split("render_environment")[1]))
    assert set(wanted[1].split()) <= exported | {"AWS_REGION"}


def test_the_job_of_the_verification_is_valid() -> None:
    template = (ROOT / "cluster/manifests/ray/rayjobs/evaluate.yaml").read_text()
    made = run(
        [python(), SCRIPTS / "lib/verify_job.py"], stdin=json.dumps({"data": {"evaluate.yaml": template}})
    ).stdout
    job = json.loads(made)
    assert "workerGroupSpecs" not in job["spec"]["rayClusterSpec"], "it needs no GPU"
    words = job["spec"]["entrypoint"].split()
    assert (ROOT / words[1]).is_file()
    options = run([python(), *words[1:2], "--help"]).stdout
    assert not [word for word in words if word.startswith("--") and word not in options]
    done = kube_validate(made)
    assert not done.returncode, done.stdout
