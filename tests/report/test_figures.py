"""Every figure is drawn, says what it shows, and takes its colours from the page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report.synthetic import HOSTILE, lines, made_up, make_run

from trb_mlx.report import plots
from trb_mlx.report.charts import Chart, Line
from trb_mlx.report.curve_charts import SPECS, Spec, chart_of
from trb_mlx.report.curves import Method, group_runs, read_runs
from trb_mlx.report.diagnostic_charts import diagnostic_charts
from trb_mlx.report.plots import draw
from trb_mlx.report.results import numbers
from trb_mlx.report.theme import DARK, LIGHT
from trb_mlx.text import rounded


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> list[Method]:
    root = tmp_path_factory.mktemp("runs")
    paths = [make_run(root / "trb-0"), make_run(root / "trb-1", lines(shift=0.1), train__seed=1)]
    paths.append(make_run(root / "vanilla", lines(budget=0.0), behavior__kind="vanilla"))
    return group_runs(read_runs([str(path) for path in paths]))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_a_figure_of_each_metric(spec: Spec, methods: list[Method]) -> None:
    chart = chart_of(spec, methods)
    assert chart is not None
    assert chart.shaded == [3]
    drawing = draw(chart)
    assert drawing.png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(drawing.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == chart.alt
    assert spec.title in chart.alt
    assert "trb (2 seeds): from" in chart.alt
    texts = {text.text for text in root.iter("text")}
    assert {"step", spec.y_label, "warm-up", "trb (2 seeds)", "vanilla"} <= texts


def test_an_svg_brings_nothing_of_its_own_into_the_page(methods: list[Method]) -> None:
    first, second = (draw(chart).svg for spec in SPECS[:2] if (chart := chart_of(spec, methods)))
    for svg in (first, second):
        assert not re.search(r"#[0-9a-fA-F]{6}|https?:|<style|<script|font-family", svg)
        root = ElementTree.fromstring(svg)
        own = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        used = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", svg))
        assert used <= own
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]


def test_every_variable_has_both_themes() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)  # a colour names its variable


def test_a_chart_draws_the_same_twice(methods: list[Method]) -> None:
    chart = chart_of(SPECS[0], methods)
    assert chart is not None
    assert draw(chart) == draw(chart)


def test_the_budget_is_drawn_beside_its_kl(methods: list[Method]) -> None:
    spec = next(spec for spec in SPECS if spec.reference)
    chart = chart_of(spec, methods)
    assert chart is not None
    labels = [line.label for line in chart.lines]
    assert labels == ["trb (2 seeds)", "budget ε of trb (2 seeds)", "vanilla"]


def test_the_teacher_is_a_level(methods: list[Method]) -> None:
    chart = chart_of(SPECS[0], methods)
    assert chart is not None
    assert chart.level == (pytest.approx(0.95), "teacher")
    assert "teacher, 95.0%" in chart.alt


def test_without_its_metric_there_is_no_figure(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [{"step": 0, "eval/pass@1": 0.5}])
    methods = group_runs(read_runs([str(tmp_path / "run")]))
    assert [spec.metric for spec in SPECS if chart_of(spec, methods)] == ["eval/pass@1"]
    chart = chart_of(SPECS[0], methods)
    assert chart is not None
    assert "run: 50.0% at 0." in chart.alt
    assert draw(chart).svg


def test_names_are_text_and_nothing_else() -> None:
    chart = Chart(
        "key",
        "title",
        "caption",
        "step",
        "y",
        [
            Line(HOSTILE[:40], 0, np.arange(3.0), np.arange(3.0)),
            Line("$x", 1, np.ones(1), np.ones(1)),
        ],
    )
    texts = [text.text for text in ElementTree.fromstring(draw(chart).svg).iter("text")]
    assert HOSTILE[:40] in texts
    assert "$x" in texts


@pytest.mark.parametrize("value", [0.0, 1e-12, 5.0, -3.0])
@pytest.mark.parametrize("log", [False, True])
def test_flat_and_single_lines_are_drawn(value: float, log: bool) -> None:
    line = Line("flat", 0, np.arange(4.0), np.full(4, value), marked=True)
    chart = Chart("k", "t", "c", "step", "y", [line], log=log and value > 0, shaded=[2])
    assert draw(chart).svg


def test_diagnostics_have_their_figures() -> None:
    charts = diagnostic_charts(made_up())
    assert [chart.key for chart in charts] == [
        "continuation-teacher",
        "continuation-student",
        "continuation-gain",
        "reward-by-teacher-logprob",
        "teacher-logprob-by-outcome",
        "auroc",
    ]
    for chart in charts:
        assert draw(chart).svg
    gain = charts[2]
    assert [line.label for line in gain.lines] == ["teacher continues", "student continues"]
    assert gain.lines[0].y.tolist() == [0.25, 0.25]
    assert charts[5].lines[0].y.tolist() == [0.875, 0.75]


def test_without_gold_answers_nothing_is_compared() -> None:
    assert diagnostic_charts(made_up(rewarded=False)) == []


def test_numbers_of_a_long_curve_keep_its_ends() -> None:
    x = np.arange(1000.0)
    chart = Chart("k", "t", "c", "step", "y", [Line("a", 0, x, x), Line("b", 1, x[:10], x[:10])])
    headings, rows = numbers(chart)
    assert headings == ["step", "a", "b"]
    assert len(rows) == 13
    assert rows[0] == ["0", "0", "0"]
    assert rows[-1] == ["999", "999", "–"]


def test_numbers_read_well() -> None:
    values = (0.000512, 0.137, 10.37, 998.4, 12345.6, -14.28)
    assert [rounded(v) for v in values] == ["0.000512", "0.137", "10.4", "998", "12,346", "−14.3"]
    assert rounded(0.906, share=True) == "90.6%"


@pytest.mark.parametrize("limit", ["0.1", "1000000"])
def test_a_legend_of_long_names_stays_inside(limit: str) -> None:
    """However wide the numbers beside the axis are."""
    x = np.linspace(0, float(limit), 5)
    lines = [Line(f"method-{slot}-0123abcd", slot, x, x) for slot in range(4)]
    figure = plots._draw(Chart("k", "t", "c", "step", "y", lines))
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert legend.get_window_extent().x1 <= figure.bbox.x1
