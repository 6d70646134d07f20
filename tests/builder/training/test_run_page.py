"""The page of a run, which is drawn from its log."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from policysmith.builder.training.monitoring.run_page import RunPage


def test_the_page_grows_with_the_log_and_stands_alone(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    page = RunPage(run, "recipe: 1\nname: <first>\n")
    page.start(0, 200)
    lines = [{"step": step, "loss": 100.0 / step, "lr": 1e-3} for step in range(1, 101)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"note": "hello"}\n{"step": 5')
    page.log(100, {})
    text = (run / "report.html").read_text()
    assert "step 100 of 200" in text
    assert 'http-equiv="refresh"' in text
    assert "&lt;first&gt;" in text
    points = re.findall(r'points="([^"]+)"', text)
    assert len(points) == 2
    drawn = [tuple(map(float, point.split(","))) for point in points[0].split()]
    assert drawn[0] == (pytest.approx(64 + 836 / 100, abs=0.1), 8.0)
    assert drawn[-1] == (900.0, 228.0)
    assert "validation/loss" not in text

    (run / "log.jsonl").open("a").close()
    with (run / "log.jsonl").open("a") as log:
        log.write('\n{"step": 150, "validation/loss": 2.0}\n')
    page.log(150, {})  # too soon after the last one
    assert "validation/loss" not in (run / "report.html").read_text()
    page.close()
    text = (run / "report.html").read_text()
    assert "validation/loss" in text
    assert "http-equiv" not in text
    assert "src=" not in text


def test_a_page_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = RunPage(tmp_path / "missing", "")
    page.start(0, 2)
    with caplog.at_level(logging.WARNING):
        page.log(1, {})
        page.log(2, {})
        page.close()
    assert caplog.text.count("cannot be written") == 1
