"""The page: complete, self-contained, safe against what prompts and names hold."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.synthetic import HOSTILE, lines, made_up, make_run

from trb_mlx.errors import UserError
from trb_mlx.evaluation.diagnostics import read_diagnostics, write_diagnostics
from trb_mlx.report.curve_charts import SPECS
from trb_mlx.report.page import EDGES, report_runs, shade, visible, with_subscripts


class Outline(HTMLParser):
    """Tags in order, and what a reader without eyes meets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*paths: Path, out: Path) -> tuple[str, Outline]:
    written = report_runs([str(path) for path in paths], out)
    assert written[0] == out / "index.html"
    assert {path.name for path in out.iterdir()} == {path.name for path in written}
    text = written[0].read_text()
    return text, Outline(text)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What is written for one run with diagnostics: the page, then its figures."""
    run = make_run(tmp_path_factory.mktemp("one") / "small", lines())
    write_diagnostics(run / "diagnostics.json", made_up())
    written = report_runs([str(run)])
    assert written[0] == run / "report/index.html"
    return written


@pytest.fixture
def outline(one_run: list[Path]) -> Outline:
    """The outline of its page."""
    return Outline(one_run[0].read_text())


def test_a_run_is_told_in_figures_and_words(outline: Outline) -> None:
    for told in (
        "us/student ← them/teacher",
        "TRB, ε 0.02 annealed to 0 over 50 steps",
        "0.0% → 60.0%",
        "best 60.0% at step 6",
        "teacher 95.0%",
        "rollouts 53%, updates 27%, evaluation 20%",
        "learning_rate",
        "Wrong, 3 tokens, mean score −2.80.",
    ):
        assert told in outline.text, told


def test_each_figure_is_in_the_page_and_in_a_file(outline: Outline, one_run: list[Path]) -> None:
    figures = list(outline.of("svg"))
    assert len(figures) == len(SPECS) + 6 == len(one_run) - 1
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


def test_headings_descend_one_level_at_a_time(outline: Outline) -> None:
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tags_are_closed_and_links_lead_somewhere(outline: Outline, one_run: list[Path]) -> None:
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = {a["href"] for a in outline.of("a")}
    assert {link[1:] for link in links if link and link.startswith("#")} <= set(ids)
    local = {link for link in links if link and not link.startswith("#")}
    assert local == {path.name for path in one_run[1:]}


def test_the_page_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    write_diagnostics(run / "diagnostics.json", made_up())
    text, outline = page_of(run, out=tmp_path / "out")
    assert not re.search(r"https?:|src=|@import|url\((?!#)", text)
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    policy = next(a for a in outline.of("meta") if a.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "<b>run & 'co'",
        lines()[:1],
        student__model=HOSTILE,
        prompt__plain=HOSTILE + "{prompt}",
    )
    write_diagnostics(run / "diagnostics.json", made_up(piece=HOSTILE, prompt=HOSTILE))
    text, outline = page_of(run, out=tmp_path / "out")
    assert "<script" not in text
    assert "<img" not in text
    assert not [a for _, a in outline.tags if any(name.startswith("on") for name in a)]
    assert outline.text.count(HOSTILE) >= 5  # model, template, prompt, answer, both excerpts
    assert "<b>run & 'co'" in outline.text


def test_several_runs_lie_over_each_other(tmp_path: Path) -> None:
    first = make_run(tmp_path / "trb-seed0")
    second = make_run(tmp_path / "trb-seed1", lines(shift=0.1), train__seed=1)
    third = make_run(tmp_path / "plain", lines(budget=0.0), behavior__kind="vanilla")
    for run in (first, second, third):
        write_diagnostics(run / "diagnostics.json", made_up())
    _, outline = page_of(first, second, third, out=tmp_path / "out")
    assert len(outline.of("svg")) == len(SPECS) + 12  # diagnostics of each method's first run
    for told in (
        "2 methods compared",
        "trb (2 seeds)",
        "seeds 60.0% to 70.0%",
        "vanilla, the student alone",
        "Where the methods differ",
        "behavior.kind",
    ):
        assert told in outline.text, told


def test_several_runs_report_beside_them_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert report_runs(paths, None)[0] == Path("report/index.html")


def test_a_page_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", [{"step": 0, "eval/reverse_kl": 2.0}, {"step": 1}])
    _, outline = page_of(run, out=tmp_path / "out")
    assert len(outline.of("svg")) == 1
    assert "without a figure: pass@1 on held-out prompts; Reverse KL on training" in outline.text
    assert f"Not measured. trb-mlx report {run} --diagnostics" in outline.text
    none = make_run(tmp_path / "none", [{"step": 0, "other": 1.0}])
    _, outline = page_of(none, out=tmp_path / "none-out")
    assert not outline.of("svg")


def test_a_vanilla_run_has_no_policy_to_plot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "plain", lines(budget=0.0), behavior__kind="vanilla")
    _, outline = page_of(run, out=tmp_path / "out")
    assert "The student drew every token alone." in outline.text
    assert "Blend weight β" not in outline.text


def test_without_gold_answers_excerpts_remain(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_diagnostics(run / "diagnostics.json", made_up(rewarded=False))
    _, outline = page_of(run, out=tmp_path / "out")
    assert "no gold answers, so success cannot be compared" in outline.text
    assert "3 tokens, mean score −2.80." in outline.text
    assert "Wrong" not in outline.text


def test_a_damaged_diagnostics_file_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert read_diagnostics(run / "diagnostics.json") is None
    for text in ("{", '{"student": 3}'):
        (run / "diagnostics.json").write_text(text)
        with pytest.raises(UserError, match="delete it and run that again"):
            report_runs([str(run)])


def test_shades_and_marks() -> None:
    assert [shade(s) for s in (-20, -8, -7.9, -0.2, 0, 0.25, 1, 100)] == [-4, -4, -3, 0, 0, 1, 2, 4]
    assert shade(EDGES[-1]) == len(EDGES)
    assert visible("a\n\tb") == "a↵\n⇥\tb"
    assert with_subscripts("π_S < π_T") == "π<sub>S</sub> &lt; π<sub>T</sub>"
