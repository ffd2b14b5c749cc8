"""What code and tests cite is in the repository: a fault by its number, the contract by its section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = [int(number) for number in re.findall(r"^(\d+)\. \S", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)]
SECTIONS = set(re.findall(r"^##+ ([\d.]*\d)", (ROOT / "docs/contract.md").read_text(), re.MULTILINE))
# FAULTS 8 / docs/faults.md, 8 / test_F8_...; contract, section 1.2 (and 1.3) / docs/contract.md, 1.2
CITED_FAULT = re.compile(r"(?:\bFAULTS |docs/faults\.md, |\btest_F)(\d+)")
CITED_SECTION = re.compile(r"(?:contract, sections? |docs/contract\.md, )([\d.]*\d)(?: and ([\d.]*\d))?")


def dangling(text: str) -> list[str]:
    """The citations of a text that lead nowhere."""
    faults = [f"fault {number}" for number in CITED_FAULT.findall(text) if int(number) not in FAULTS]
    cited = [section for pair in CITED_SECTION.findall(text) for section in pair if section]
    return faults + [f"section {section}" for section in cited if section not in SECTIONS]


def test_faults_are_numbered_without_a_gap() -> None:
    assert list(range(1, 75)) == FAULTS


def test_every_citation_leads_somewhere() -> None:
    """Numbers of faults and sections were cited whose list was not in the repository."""
    files = [file for room in ("rayapp", "jobs", "tests") for file in (ROOT / room).rglob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file != Path(__file__)}
    assert sum(len(CITED_FAULT.findall(text)) for text in texts.values()) > 30
    assert [(str(file), found) for file, text in texts.items() for found in dangling(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("stops nothing (docs/faults.md, 8)", []),
        ("stops nothing (docs/faults.md, 80)", ["fault 80"]),
        ("def test_F0_a_fault_that_is_not_there", ["fault 0"]),
        ("as the contract says (docs/contract.md, 1.3 and 2.3)", []),
        ("as the contract says (docs/contract.md, 1.9)", ["section 1.9"]),
    ],
)
def test_a_citation_that_leads_nowhere_is_found(text: str, found: list[str]) -> None:
    assert dangling(text) == found
