"""docs/costs.md says what the prices in Terraform and the measured rates come to."""

from __future__ import annotations

import re

import pytest

from tests.deploy.tools import ROOT

PAGE = (ROOT / "docs/costs.md").read_text(encoding="utf-8")
PRICES = {
    name: float(usd)
    for name, usd in re.findall(
        r"^\s+(\w+)\s+= \{ usd = ([\d.]+)", (ROOT / "terraform/modules/cost/prices.tf").read_text(), re.MULTILINE
    )
}
NODE = PRICES["t3a_large_hour"]
IMAGES, RATE = 45_000, 1_068


@pytest.mark.parametrize(
    ("row", "seconds"),
    [("training", 13 * IMAGES / RATE), ("sweep", 302 * IMAGES / RATE), ("1,000,000 predictions", 1_000_000 / 2_508)],
)
def test_the_work_costs_what_its_hours_on_a_node_cost(row: str, seconds: float) -> None:
    hours, usd = re.findall(rf"^\| {row}.*\| ([\d.]+) hours: ([\d.]+) \|$", PAGE, re.MULTILINE)[0]

    assert (hours, usd) == (f"{seconds / 3600:.2f}", f"{seconds / 3600 * NODE:.2f}")


def test_what_comes_beside_it_is_of_the_same_prices() -> None:
    unit, gpu = PRICES["capacity_unit_hour"], PRICES["g6_xlarge_hour"]

    assert f"({NODE} an hour)" in PAGE
    assert f"a quarter of an hour: {NODE / 4:.2f}." in PAGE
    assert f"an hour, {3.5 * unit:.2f}. Photos of 1 MB would be 1,000 GB: {1000 * unit:.2f}." in PAGE
    assert f"is {gpu:.2f} on demand and, as spot is usually 30 to 70 % less, {gpu * 0.3:.2f} to {gpu * 0.7:.2f}" in PAGE
    assert f"head's node adds {NODE:.2f}" in PAGE.replace("its head's node", "head's node")


def test_the_base_is_that_of_terraform() -> None:
    readme = (ROOT / "terraform/README.md").read_text(encoding="utf-8")
    lean, standard = re.findall(r"\*\*Total\*\* \| \*\*([\d.]+)\*\* \| \*\*([\d.]+)\*\*", readme)[0]

    assert f"| {lean} | {standard} |" in PAGE
