"""The path study: from the command line to the page, killed and resumed, and what it says."""

import json

import pytest
from conftest import retain_command

from retain.errors import InputError
from retain.figures import svg
from retain.report import write_report
from retain.runs import Run, execute
from retain.studies import find
from retain.studies.path_arms import WAYS
from retain.studies.path_spec import PRESETS, VARIANTS, Arm, PathSpec
from retain.tasks import mnist

SMALL = [
    "hidden=[64,32]",
    "dense_epochs=2",
    "K=[4,8]",
    "seconds=0.1",
    "samples=3000",
    "points=3",
    "certify=100",
    "validation=7000",
    "threads=1",
    "seeds=2",
    "arms=[sudden,task,kd,optimal,optimal-sin2,natural,retention-optimal]",
]


def bits(run: Run) -> list[dict[str, object]]:
    """Results without what a clock says."""
    found = []
    for result in run.results():
        ways = [{key: value for key, value in way.items() if key not in ("seconds", "steps")} for way in result["ways"] if way["budget"] == "samples"]
        found.append({"dense": result["dense"], "ways": ways})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = find("path")
    return execute(study, study.spec("quick", SMALL), tmp_path_factory.mktemp("path"))


def test_numbers_and_headline(run):
    summary = run.read("summary.json")
    assert summary["headline"].startswith(f"{100 * summary['numbers']['dense']['accuracy']['mean']:.1f} ± ")
    ways = {(way["arm"], way["K"], way["budget"]) for way in run.results()[0]["ways"]}
    assert ("optimal-sin2", 4, "samples") in ways and ("optimal-sin2", 4, "seconds") not in ways and ("optimal-sin2", 8, "samples") not in ways
    assert len(ways) == 2 * 2 * 6 + 1
    for result in run.results():
        for way in result["ways"]:
            assert way["length"] >= way["distance"] and 0 <= way["accuracy"] <= 1 and way["steps"][-1]["q"] == 1
            if way["budget"] == "samples" and way["arm"] != "sudden":
                assert way["samples"] >= 3000
            assert all(units <= way["K"] for units in way["active"].values())
    first = {way["arm"]: way["accuracy"] for way in run.results()[0]["ways"] if (way["K"], way["budget"]) == (8, "samples")}
    assert first["kd"] > first["sudden"] and first["optimal"] > first["sudden"]


def test_page_and_figures(run):
    text = write_report(run).read_text()
    for words in ("After 0.1 CPU seconds", "After 3,000 samples", "optimal law", "its flat curve proves nothing", "no path can be"):
        assert words in text
    assert text.count("<svg") == 4


def test_a_run_that_was_broken_off_goes_on_with_the_same_bits(run, tmp_path):
    study = find("path")
    spec = study.spec("quick", SMALL)
    seen = []

    def stop(seed, arm, kind, fields):
        seen.append((seed, arm))
        if seed == 1 and arm == "kd@4,samples" and kind == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study, spec, tmp_path, listener=stop)
    before = len(seen)
    again = execute(study, spec, tmp_path, resume=True, listener=lambda *event: seen.append(event[:2]))
    assert bits(again) == bits(run)
    assert (0, "dense") not in seen[before:] and (1, "kd@4,samples") in seen[before:]


def test_a_dense_network_may_come_from_another_run(run, tmp_path):
    words = [word for setting in (*SMALL, "arms=[sudden]", "seeds=1") for word in ("--set", setting)]
    done = retain_command("run", "path", *words, "--from", str(run.path), "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["numbers"]["dense"]["accuracy"]["mean"] == run.results()[0]["dense"]["accuracy"]


def test_other_presets_run_small(tmp_path):
    study = find("path")
    tiny = ["embedded=true", "seeds=1", "hidden=[24,16]", "dense_epochs=1", "points=2", "certify=50", "threads=1"]
    softmax = execute(study, study.spec("softmax", [*tiny, "K=[6]", "samples=600", "epochs=1", "validation=9400"]), tmp_path)
    assert "after 1 epochs" in softmax.read("summary.json")["headline"]
    paper = execute(study, study.spec("paper", [*tiny, "K=[6]", "steps=3", "iterations=2", "first=1", "arms=[sudden,frozen,kd-adam,retention-0.5]"]), tmp_path)
    notes = paper.read("summary.json")["notes"]
    assert any("98.08" in note for note in notes) and any("change nothing" in note for note in notes)
    tune = execute(
        study, study.spec("tune", [*tiny, "K=[6]", "seconds=0.05", "samples=600", "validation=9400", "arms=[kd,kd-adam]", "multiples=[1,1.0e+30]"]), tmp_path
    )
    assert "x1" in write_report(tune).read_text()
    assert [way["factor"] for way in tune.results()[0]["ways"]] == [1, 1e30] * 4


def test_dry_run():
    done = retain_command("run", "path", "--preset", "best", "--set", "embedded=true", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "567,434 parameters" in done.stdout and "optimal@5,samples" in done.stdout


def test_every_arm_can_be_made():
    assert set(WAYS) == set(Arm.__args__) and set(VARIANTS) <= set(WAYS)
    for way in WAYS.values():
        settings = {key: value for key, value in way.few.items() if key != "early"}
        assert repr(way.make(1.0, **settings)) and repr(way.make(2.0))
    assert {"quick", "paper", "best", "beyond", "softmax", "tune"} == set(PRESETS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["K=[0]"], "K"),
        (["K=[5,5]"], "every entry once"),
        (["K=[600]"], "at most the 512 units of the layer before"),
        (["arms=[optimall]"], "arms"),
        (["q_start=1.0"], "less than 1"),
        (["q_start=0"], "above 0 with optimal arms"),
        (["gate=softmax", "K=[1]"], "at least 2 for a softmax gate"),
        (["seconds=0"], "greater than 0"),
        (["multiples=[]"], "at least 1 item"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    study = find("path")
    with pytest.raises(InputError, match=message):
        study.check(study.spec("quick", settings))


def test_figures_of_one_seed_have_no_bands(run):
    study = find("path")
    spec = PathSpec.parse(run.spec()["settings"])
    outcome = study.summarise(spec, run.results()[:1])
    assert "one seed: no error can be given" in outcome.tables[0].note
    assert all("<svg" in svg(figure) for figure in outcome.figures)
    assert mnist(embedded=True).n == 10000
