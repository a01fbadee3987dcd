"""`report`: one page per run, of good runs and of failed ones, with sensitive values masked and without loading Beam."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.serving.two_layers import DAY, HOUR, NOW, Row, Twin


@pytest.fixture
def page(call: Call, orders: Path) -> Path:
    """Where a report of `orders` goes; it ran once."""
    call("run", orders, "--run-id", "first")
    return orders.parent / "report.html"


def test_a_run_is_one_page(call: Call, orders: Path, page: Path) -> None:
    done = call("report", orders, "--output", page)
    assert done.out.startswith(f"{page}: success run first, ")
    html = page.read_text()
    for word in ("orders: Success", "✓ balances", "conform:CAST", "by_hour", "2024-05-02 10:05:00 UTC", "amount &lt; 1000"):
        assert word in html
    assert html.count("http") == html.count("http-equiv")  # nothing is fetched


def test_of_both_layers_it_says_whether_they_agree_and_what_came_since(call: Call, tmp_path: Path) -> None:
    twin, page = Twin(tmp_path / "twin"), tmp_path / "report.html"
    twin.know()
    twin.stream(Row(1, 1, 0), Row(2, 2, HOUR, v=7), Row(4, 4, 9 * DAY))  # the last where the batch has no answer
    twin.stream(Row(3, 3, 2 * HOUR), stored=NOW + DAY)
    twin.commit(Row(1, 1, 0), Row(2, 2, HOUR))
    call("report", twin.folder / "pipeline.yaml", "--output", page)
    html = page.read_text()
    for words in ("agree on 33.3 % of 3 rows", "1 stale", 'href="#stale"', "backfill --stale"):
        assert words in html
    twin.started()
    call("report", twin.folder / "pipeline.yaml", "--run", "s1", "--output", page)
    assert "[2024-10-04, 2024-10-14)" in page.read_text()  # the stream's rows, not all that the batch has
    assert "no batch run has committed" not in page.read_text()
    call("report", twin.folder / "pipeline.yaml", "--output", page, "--no-verify")
    assert "agree on" not in page.read_text()
    assert "backfill --stale" in page.read_text()


def test_what_is_sensitive_is_not_on_the_page(call: Call, orders: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("report", orders, "--output", page)
    assert "secret" not in page.read_text()
    assert "(record not kept)" in page.read_text()
    monkeypatch.setenv("RAW_KEY", "0123456789abcdef" * 4)
    orders.write_text(orders.read_text() + "dead_letters: {raw_key: env:RAW_KEY}\n")
    call("run", orders)
    call("report", orders, "--output", page)
    assert "bytes, encrypted)" in page.read_text()
    assert "secret" not in page.read_text()
    assert "0123456789abcdef" not in page.read_text()


def test_a_failed_run_has_a_page_too(call: Call, orders: Path, page: Path) -> None:
    call("run", orders, "--set", "least=100", "--run-id", "second", code=1)
    assert "failed run second" in call("report", orders, "--output", page).out
    html = page.read_text()
    for word in ("Nothing was committed", "enough_rows", "fit to be written", "3 records in dead letters", "--run second"):
        assert word in html
    assert "success run first" in call("report", orders, "--run", "first", "--output", page).out
    assert call("report", orders, "--run", "first", "--output", "-").out.startswith("<!DOCTYPE html>")


def test_a_run_to_another_lake_is_read_where_it_wrote(call: Call, orders: Path, page: Path) -> None:
    call("run", orders, "--set", "lake=other", "--run-id", "second")
    call("report", orders, "--output", page)
    assert "all there" in page.read_text()
    assert "Rows by event time" in page.read_text()
    call("report", orders, "--run", "first", "--output", page)
    assert "all there" in page.read_text()


def test_a_run_that_is_not_there_is_an_error(call: Call, orders: Path, tmp_path: Path) -> None:
    assert "no run of 'orders' has ended yet" in call("report", orders, code=1).err
    call("run", orders, "--run-id", "first")
    assert "did you mean 'first'?" in call("report", orders, "--run", "frist", code=1).err
    assert "No such file" not in call("report", orders, "--run", "../runs/first", code=1).err
    assert call("report", orders, "--output", tmp_path / "orders.csv" / "report.html", code=1).err.startswith("error: ")


def test_loads_no_beam(orders: Path, page: Path) -> None:
    code = (
        "import sys\nfrom beam_pipelines.cli.main import command, run_command\n"
        f"run_command(command, ['report', {str(orders)!r}, '--output', {str(page)!r}])\nsys.exit('apache_beam' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
