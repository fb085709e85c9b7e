"""Pages and figures: whole, self-contained, every link leads somewhere."""

import io
import math
import shlex
import xml.dom.minidom
from html.parser import HTMLParser

import pytest
from conftest import TINY

from retain.errors import InputError
from retain.figures import Bars, Images, Lines, Matrices, Scatter, Series, Table, draw, svg
from retain.report import bibliography, write_index, write_report
from retain.report.cite import entries
from retain.report.live import Display
from retain.report.page import command
from retain.runs import Run, execute
from retain.studies import find, names


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(found["href"])
        if "id" in found:
            self.ids.append(found["id"])
        for name in ("src", "href"):
            assert not str(found.get(name, "")).startswith(("http:", "https:", "//")) or tag == "a"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = find("forgetting")
    settings = [word for word in TINY if word != "--set"]
    settings = [s for s in settings if not s.startswith(("taus", "sample_sizes"))] + ["taus=[0.1]", "sample_sizes=[16,64]", "seeds=2"]
    return execute(study, study.spec("quick", settings), tmp_path_factory.mktemp("out"))


def test_the_page_of_a_run(run):
    page = Page(write_report(run).read_text())
    text = (run.path / "report.html").read_text()
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif link != "../../index.html":
            assert (run.path / link).exists(), link
    assert page.tags.count("svg") == 7 and len(list((run.path / "figures").glob("*.svg"))) == 7
    order = [
        text.index(words)
        for words in (
            'id="headline"',
            'id="curves"',
            "<nav>",
            'id="results"',
            'id="matrices"',
            'id="tradeoff"',
            'id="images"',
            'id="norms"',
            'id="fisher-error"',
            'id="settings"',
        )
    ]
    assert order == sorted(order)
    assert run.read("summary.json")["headline"] in text
    assert "split here into training and test images by us" in text
    assert "retain run forgetting --preset quick --seeds 2 --set" in text
    assert "Ankle boot" in text and "@article{kirkpatrick2017overcoming" in text


def test_the_same_numbers_give_the_same_bytes(run):
    write_report(run)
    before = {path: path.read_bytes() for path in (run.path / "figures").iterdir()}
    write_report(run)
    assert before == {path: path.read_bytes() for path in (run.path / "figures").iterdir()}


def test_the_index(run):
    write_report(run)
    out = run.path.parents[1]
    page = Page(write_index(out).read_text())
    assert [link for link in page.links if link.endswith("report.html")] and all((out / link).exists() for link in page.links)
    text = (out / "index.html").read_text()
    for name in names():
        assert find(name).question.split("?")[0] in text
    assert run.read("summary.json")["headline"] in text and "svg" in page.tags


def test_the_printed_command_makes_the_same_run(run):
    study, settings = find("forgetting"), run.spec()["settings"]
    words = shlex.split(command("forgetting", {**settings, "importance": None}))
    again = study.spec(words[words.index("--preset") + 1], [words[i + 1] for i, word in enumerate(words) if word == "--set"])
    assert again.fingerprint(study) == run.path.name


def test_the_index_before_anything_ran(tmp_path):
    assert "retain run forgetting" in write_index(tmp_path).read_text()


def test_unfinished_runs_are_reported_from_what_is_there(run, tmp_path):
    import shutil

    copy = tmp_path / "forgetting" / "copy"
    shutil.copytree(run.path, copy)
    (copy / "seed-1" / "result.json").unlink()
    assert "one seed: no error" in write_report(Run(copy)).read_text()
    (copy / "seed-0" / "result.json").unlink()
    with pytest.raises(InputError, match="finished seed"):
        write_report(Run(copy))
    (copy / "spec.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        write_report(Run(copy))


def test_what_a_person_writes_is_escaped():
    table = Table("<b>", ["&"], [["<script>"]])
    assert "<script>" not in table.html() and "&lt;script&gt;" in table.html()


def test_tables_line_up():
    text = Table("T", ["", "a"], [["long name", "1"], ["b", "22"]], "note").text()
    assert text.splitlines() == ["T", "            a", "long name   1", "b          22", "note"]


SPECS = [
    Lines("t", "x", "y", [Series("a", [1, 2], [3, 4], [0.1, math.nan]), Series("b", [1], [2], dashed=True)], marks={"m": 1.5}),
    Lines("t", "x", "y", panels={"p": [Series("a", [1, 10], [1, 10])], "q": [Series("a", [1], [1])]}, x_log=True, y_log=True),
    Scatter("t", "x", "y", [Series("a", [1, 2], [3, 4], [0.1, 0.1], [0.2, 0.2], ["l", "m"]), Series("b", [1], [1])]),
    Matrices("t", {"a": [[1.0, 99.0]], "b": [[2.0, 3.0]]}, ["x", "y"], ["r"]),
    Bars("t", "y", ["g", "h"], {"p": {"a": [1, 2], "b": [3, 4]}, "q": {"a": [1, 2], "b": [3, 4]}}, y_log=True),
    Images("t", [[("zero", [[0.0, 1.0], [1.0, 0.0]])], [("one", [[0.5]]), ("two", [[0.5]])]]),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_every_kind_of_figure_is_drawn(spec):
    text = svg(spec)
    assert xml.dom.minidom.parseString(text).documentElement.tagName == "svg"
    assert svg(spec) == text and ">t<" in text
    assert draw(spec).axes


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2], SPECS[4]], ids=lambda spec: type(spec).__name__)
def test_a_legend_names_every_series_once_and_hides_nothing(spec):
    figure = draw(spec)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert not any(legend.get_window_extent().overlaps(ax.get_window_extent()) or ax.get_legend() for ax in figure.axes)


@pytest.mark.parametrize("kind", [Lines, Scatter])
def test_series_beyond_the_colours_have_another_marker(kind):
    figure = draw(kind("t", "x", "y", [Series(str(i), [i], [i]) for i in range(13)]))
    looks = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_marker() in "os"]
    assert len(looks) == len(set(looks)) == 13 and looks[0][0] == looks[11][0]


def test_citations(tmp_path):
    for name in names():
        assert bibliography(find(name).citations).startswith("@software{retain,")
    from retain.methods import METHODS

    assert all(method.citation in entries() for method in METHODS.values() if method.citation)
    with pytest.raises(InputError, match="nonsense"):
        bibliography(["nonsense"])


def test_the_live_display(capsys):
    with Display("title", ["first", "plain", "ewc@1"], seeds=2) as display:
        fields = {"task": "mnist", "epoch": 1, "epochs": 2, "loss": 0.5, "accuracy": {"mnist": 0.9}, "method": "plain"}
        display(0, "first", "epoch", fields)
        display(0, "first", "done", {})
        display(0, "", "verdict", {"text": "kept 90"})
        display(1, "ewc@1", "epoch", fields)
        display(1, "ewc@1", "remembered", {"task": "mnist", "accuracy": {"mnist": 0.8}})
        display(1, "ewc@1", "done", {})
        display(1, "plain", "done", {})
    said = capsys.readouterr().err
    assert "mnist 90.0 %" in said and "mnist 80.0 %" in said and "kept 90" in said and "restored" in said
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(display._view())
    assert "title" in console.export_text()


def test_a_table_keeps_its_cells_in_any_form():
    table = Table("T", ["", "a|b"], [["one\ntwo", "<b> 5\\"]])
    assert table.markdown().splitlines()[2:] == ["|  | a\\|b |", "| :--- | ---: |", "| one two | \\<b> 5\\\\ |"]
    assert r"one two & \textless{}b\textgreater{} 5\textbackslash{} \\" in table.latex()
