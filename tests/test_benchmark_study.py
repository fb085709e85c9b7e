"""The benchmark: its cells, its search, what it measures, its page, and what it refuses."""

import json
import shutil

import pytest

from retain import learn, metrics
from retain.errors import InputError, RetainError, RetainWarning
from retain.report import write_report
from retain.runs import Run, execute
from retain.studies import find
from retain.studies.benchmark import figures
from retain.studies.benchmark.arms import stream_of
from retain.studies.benchmark.reported import reported

TINY = [
    "train_steps=24",
    "units=[16]",
    "batch_size=32",
    "lr=0.005",
    "experiences=2",
    "methods=[plain,ewc,er,separate,joint]",
    "scenarios=[task,class]",
    "search={ewc: [1.0e+1, 1.0e+8]}",
    "searched=50",
    "points=2",
    "seeds=2",
]


@pytest.fixture(scope="module")
def study():
    return find("benchmark")


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    return execute(study, study.spec("quick", TINY), tmp_path_factory.mktemp("benchmark"))


def cells_of(run):
    return {(k, cell["scenario"], cell["method"]): cell for k, result in enumerate(run.results()) for cell in result["cells"]}


def trials_of(run):
    """Stored specs and results of the search."""
    found = [(json.loads((path / "spec.json").read_text())["settings"], path) for path in sorted((run.path.parent / "cells").iterdir())]
    return [(spec, json.loads((path / "seed-0" / "result.json").read_text())["cells"][0]) for spec, path in found if spec["validation"]]


def test_every_method_in_every_scenario(run):
    found = cells_of(run)
    methods = {"task": ["plain", "ewc", "er", "separate", "joint"], "class": ["plain", "ewc", "er", "joint"]}
    assert list(found) == [(k, scenario, method) for k in (0, 1) for scenario, chosen in methods.items() for method in chosen]
    for k in (0, 1):
        assert figures.final(found[k, "class", "plain"]) < 0.6 < figures.final(found[k, "class", "joint"])
        assert figures.final(found[k, "class", "er"]) > figures.final(found[k, "class", "plain"])
        assert found[k, "class", "er"]["carried"] > 100 * 784 * 4 and found[k, "class", "plain"]["carried"] == 0
        assert found[k, "task", "separate"]["rows"][-1][0] == found[k, "task", "separate"]["rows"][1][0]  # nothing is forgotten
    for (_, _, method), cell in found.items():
        assert len(cell["rows"]) == (2 if method == "joint" else 3) and len(cell["ece"]) == 2 and all(0 <= e <= 1 for e in cell["ece"])
        assert cell["seconds"] > 0 and (method == "joint" or [len(point) for point in cell["curve"]] == [1, 2])
    assert found[0, "task", "plain"]["rows"] != found[1, "task", "plain"]["rows"]


def test_the_search_takes_what_is_best_on_held_out_images_of_another_seed(study, run):
    trials = trials_of(run)
    assert len(trials) == 4 and {(spec["offset"], spec["validation"], spec["train_steps"]) for spec, _ in trials} == {(1000, 50, 6)}
    for scenario in ("task", "class"):
        mine = [cell for spec, cell in trials if spec["scenarios"] == [scenario]]
        best = max(mine, key=lambda cell: (figures.average(cell["validation_rows"][-1]), -cell["strength"]))
        assert [cells_of(run)[k, scenario, "ewc"]["strength"] for k in (0, 1)] == [best["strength"]] * 2
    spec = study.spec("quick", TINY)
    assert stream_of(spec, "task", 0).tasks[0].validation is None  # reported runs learn from all images


def test_halving(study):
    spec = study.spec("quick", ["methods=[ewc]", "scenarios=[class]", "search={ewc: [1.0, 2.0, 3.0, 4.0]}", "train_steps=100"])
    first = study.trials(spec, [])
    assert [cell.own_strengths["ewc"] for cell in first] == [1, 2, 3, 4] and {cell.train_steps for cell in first} == {25}

    def scored(cells, best):
        kept = [(cell.own_strengths["ewc"], cell) for cell in cells]
        return [{"cells": [{"method": "ewc", "scenario": "class", "strength": s, "validation_rows": [[0.0], [best.get(s, 0.1)]]}]} for s, _ in kept]

    rounds = [scored(first, {2.0: 0.9, 4.0: 0.8})]
    second = study.trials(spec, rounds)
    assert [cell.own_strengths["ewc"] for cell in second] == [2, 4] and {cell.train_steps for cell in second} == {50}
    rounds.append(scored(second, {4.0: 0.9}))
    assert study.trials(spec, rounds) == [] and study.settled(spec, rounds).own_strengths == {"ewc/class": 4.0}
    shorter = study.trials(spec.model_copy(update={"trial_divisor": 10}), [])
    assert {cell.train_steps for cell in shorter} == {10} and {cell.trial_divisor for cell in shorter} == {4}  # a trial's folder is the same for every divisor
    tie = [scored(first, {}), scored(study.trials(spec, [scored(first, {})]), {})]
    assert study.settled(spec, tie).own_strengths == {"ewc/class": 1.0}  # of equal ones the weakest
    many = study.spec("quick", ["methods=[ewc]", "scenarios=[class]", "train_steps=100", f"search={{ewc: {[float(k) for k in range(1, 17)]}}}"])
    rounds = []
    for count, steps in ((16, 25), (8, 50), (4, 100), (2, 100)):  # never beyond what is reported
        cells = study.trials(many, rounds)
        assert (len(cells), {cell.train_steps for cell in cells}) == (count, {steps})
        rounds.append(scored(cells, {1.0: 0.9}))
    assert study.trials(many, rounds) == []
    assert study.plan(many).search_steps == 5 * (16 * 25 + 8 * 50 + 4 * 100 + 2 * 100)


def test_a_larger_grid_runs_only_what_is_new(study, run):
    larger = study.spec("quick", [*TINY[:5], "methods=[plain,si]", *TINY[6:7], *TINY[8:]])
    begun = []
    again = execute(study, larger, run.path.parents[1], listener=lambda seed, arm, kind, fields: begun.append(arm) if kind == "epoch" else None)
    assert again.path != run.path and {name.partition("@")[0] for name in begun} == {"si"}
    both = cells_of(again)
    assert all(both[k, "class", "plain"]["rows"] == cells_of(run)[k, "class", "plain"]["rows"] for k in (0, 1))


def test_the_page_and_its_tables(study, run):
    page = write_report(run).read_text()
    for words in (
        "Average accuracy at the end",
        "What was kept, class-incremental",
        "Methods compared, task-incremental",
        "calibration error",
        "Accuracy over time",
        "Each task at the end, class-incremental",
    ):
        assert words in page
    markdown, latex = ((run.path / f"tables.{kind}").read_text() for kind in ("md", "tex"))
    mean = metrics.estimate(figures.final(cells_of(run)[k, "task", "er"]) for k in (0, 1)).percent()
    printed = mean.replace("±", r"$\pm$")
    assert f"| ER | {mean} |" in markdown and f"ER & {printed} &" in latex and r"\toprule" in latex
    assert "separate networks" in markdown and "Beside what is reported" not in markdown


def test_verdicts():
    assert figures.verdict([99.0, 99.2, 99.1], (99.06, 0.15)) == "agrees"
    assert figures.verdict([97.0, 97.1, 97.2], (99.06, 0.15)) == "below"
    assert figures.verdict([99.9, 99.9, 99.91], (99.06, 0.15)) == "above"
    assert figures.verdict([99.0], (99.06, 0.15)) == "" and figures.verdict([99.0, 98.0], None) == ""


def test_what_is_reported_belongs_to_the_published_setting(study):
    assert reported(study.spec("split-mnist"), "class", "er") == (88.79, 0.2)
    assert reported(study.spec("quick"), "class", "er") is None
    assert reported(study.spec("split-mnist", ["experiences=2"]), "class", "er") is None
    assert reported(study.spec("split-mnist", ["train_steps=5"]), "class", "er") is None
    assert reported(study.spec("paper"), "class", "er") == (88.79, 0.2)
    assert reported(study.spec("permuted-mnist-10"), "domain", "si") == (95.33, 0.0)
    assert reported(study.spec("permuted-mnist-10", ["carry_optimizer=false"]), "domain", "si") is None


def test_streams(study):
    orders = {tuple(task.classes for task in stream_of(study.spec("quick"), "class", seed).tasks) for seed in range(3)}
    assert len(orders) == 3
    ascending = stream_of(study.spec("quick", ["class_order=ascending"]), "domain", 3)
    assert [task.classes for task in ascending.tasks] == [(0, 1)] * 5
    permuted = stream_of(study.spec("quick", ["stream=permuted", "pad=2", "experiences=3"]), "domain", 0)
    assert len(permuted) == 3 and permuted.tasks[2].data.shape == (1, 32, 32)
    pair = stream_of(study.spec("mnist-fashion", ["embedded=true"]), "domain", 0)
    assert [task.id for task in pair.tasks] == ["mnist", "fashion"]


def test_a_small_permuted_run(study, tmp_path):
    settings = ["stream=permuted", "scenarios=[domain]", *TINY[:5], "methods=[plain,laplace]", "search={}", "seeds=1", "pull=proximal", "every=2"]
    found = cells_of(execute(study, study.spec("quick", settings), tmp_path))
    assert set(found) == {(0, "domain", "plain"), (0, "domain", "laplace")} and found[0, "domain", "laplace"]["carried"] > 0


def test_carried_moments_and_a_curvature_of_few_images_reach_every_method(study, tmp_path):
    settings = ["stream=permuted", "scenarios=[domain]", *TINY[:5], "methods=[plain,ewc,online-ewc,laplace]", "search={}", "seeds=1"]
    usual = cells_of(execute(study, study.spec("quick", settings), tmp_path))
    carried = cells_of(execute(study, study.spec("quick", [*settings, "carry_optimizer=true"]), tmp_path))
    few = cells_of(execute(study, study.spec("quick", [*settings, "fisher_samples=20"]), tmp_path))
    plain, *held = usual
    assert carried[plain]["nll_rows"][1] == usual[plain]["nll_rows"][1] and carried[plain]["nll_rows"][2] != usual[plain]["nll_rows"][2]
    assert few[plain]["nll_rows"] == usual[plain]["nll_rows"]
    for key in held:
        assert few[key]["nll_rows"][1] == usual[key]["nll_rows"][1] and few[key]["nll_rows"][2] != usual[key]["nll_rows"][2], key


def test_a_grid_that_is_not_finished_says_of_how_many_seeds_it_speaks(study, run):
    spec, (first, second) = study.spec("quick", TINY), run.results()
    for results, said in (([first, second], "(2 seeds)"), ([first], "(1 seed)"), ([first, {"cells": []}], "(1 seed)")):
        assert said in study.summarise(spec, results).headline
    half = study.summarise(spec, [first, {"cells": second["cells"][:4]}])
    assert all("1 to 2 seeds, unfinished" in words for words in (half.headline, half.tables[0].note, half.figures[0].caption))


def test_plan(study):
    plan = study.plan(study.spec("quick", TINY))
    assert plan.stages[:2] == ["plain@task", "ewc@task"] and plan.steps == 24 * 2 * 9 and plan.seconds > 0
    assert plan.search_steps == 2 * 2 * 6 * 2 and plan.search_seconds > 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("methods=[ewcc]", "methods: expected methods of the benchmark, found 'ewcc'. Did you mean 'ewc'"),
        ("methods=[ewc,ewc]", "methods: expected every entry once"),
        ("own_strengths={lwf: 3}", "own_strengths: expected methods that have a strength, found 'lwf'"),
        ("own_strengths={ewc/tsk: 3}", "own_strengths: expected a method, or method/scenario, found 'ewc/tsk'. Did you mean 'task'"),
        ("search={plain: [1.0, 2.0]}", "search: expected methods that have a strength, found 'plain'. Known: ewc"),
        ("search={ewc: [1.0]}", "search: expected at least two different strengths of 'ewc'"),
        ("searched=9000", "searched: expected fewer images than the smallest task has, [0-9]+, found 9000"),
        ("search_seed=1", "search_seed: expected a seed that is not reported"),
        ("experiences=3", "experiences: expected 2, 5 or 10 with stream=split"),
        ("stream=mnist-fashion", r"scenarios: expected \[domain\]"),
        ("damping=0.1", "damping: expected 0 in scenarios whose tasks have outputs of their own, found 0.1"),
        ("methods=[separate]", "methods: expected a method that makes sense in some scenario"),
    ],
)
def test_settings_that_do_not_go_together(study, setting, said, tmp_path):
    more = ["scenarios=[class]"] if "separate" in setting else []
    with pytest.raises(InputError, match=said):
        execute(study, study.spec("quick", [*more, setting]), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_cell_is_the_same_whatever_the_grid_around_it(study):
    one, two = (study.cells(study.spec("quick", [*TINY, *more]))[0] for more in ([], ["search_seed=7", "searched=60", "methods=[plain,si]", "search={}"]))
    assert one.fingerprint(study) == two.fingerprint(study)


def test_joint_training_has_the_steps_of_all_tasks(study, monkeypatch, tmp_path):
    from retain.studies.benchmark import cell

    taken = []

    def watched(model, stream, *rest, **options):
        taken.append((len(stream), options["steps"]))
        return learn(model, stream, *rest, **options)

    monkeypatch.setattr(cell, "learn", watched)
    execute(study, study.spec("quick", [*TINY[:5], "methods=[plain,joint]", "scenarios=[class]", "search={}", "seeds=1"]), tmp_path)
    assert taken == [(2, 24), (1, 48)]


def test_a_search_that_was_lost_is_made_again_for_another_seed(study, tmp_path):
    settings = [*TINY[:5], "methods=[ewc]", *TINY[6:-1]]
    first = execute(study, study.spec("quick", [*settings, "seeds=1"]), tmp_path)
    shutil.rmtree(first.path.parent / "cells")
    both = cells_of(execute(study, study.spec("quick", [*settings, "seeds=2"]), tmp_path))
    assert len({both[k, "class", "ewc"]["strength"] for k in (0, 1)}) == 1 and len(trials_of(first)) == 4


def test_a_grid_whose_cells_are_all_another_runs(study, run):
    some = execute(study, study.spec("quick", [*TINY[:5], "methods=[plain,er]", "scenarios=[class]", *TINY[7:]]), run.path.parents[1])
    assert some.path != run.path and write_report(some).exists() and set(cells_of(some)) == {(k, "class", m) for k in (0, 1) for m in ("plain", "er")}


def test_an_unfinished_search_has_no_page(study, tmp_path):
    plain = study.spec("quick", [*TINY[:5], "methods=[plain,ewc]", "scenarios=[class]", "search={}", "seeds=1"])
    execute(study, plain, tmp_path)

    def stop(seed, arm, kind, fields):
        raise KeyboardInterrupt

    searching = study.spec("quick", [*TINY[:5], "methods=[plain,ewc]", "scenarios=[class]", *TINY[7:-1], "seeds=1"])
    with pytest.raises(KeyboardInterrupt):
        execute(study, searching, tmp_path, listener=stop)
    with pytest.raises(InputError, match="a run whose search is finished"):
        write_report(Run(tmp_path / "benchmark" / searching.fingerprint(study)))


def test_the_search_counts_its_trials_through_an_interruption(study, tmp_path):
    spec, told = study.spec("quick", [*TINY[:5], "methods=[ewc]", "scenarios=[class]", *TINY[7:-1], "seeds=1"]), []

    def listen(seed, arm, kind, fields):
        if kind == "note" and "search" in fields["text"]:
            told.append(fields["text"])
            if len(told) == 2:  # the last one is not stored yet
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study, spec, tmp_path, listener=listen)
    execute(study, spec, tmp_path, listener=listen, resume=True)
    assert [text.split(",")[1] for text in told] == [f" round 1: {i} of 2 trials finished" for i in (1, 2, 2)]


def test_a_strength_that_is_given_is_not_searched(study):
    spec = study.spec("quick", ["methods=[ewc]", "scenarios=[task,class]", "own_strengths={ewc/class: 7}"])
    assert {cell.scenarios for cell in study.trials(spec, [])} == {("task",)}


def test_a_strength_that_diverges_is_the_worst_and_stops_nothing(study, tmp_path):
    small = ["methods=[ewc]", "scenarios=[task]", "optimizer=sgd", "lr=0.05", "search={ewc: [1.0, 1.0e+30]}", "seeds=1"]
    with pytest.warns(RetainWarning, match="diverges under SGD"):
        run = execute(study, study.spec("quick", [*TINY, *small]), tmp_path)
    (cell,) = run.results()[0]["cells"]
    assert cell["strength"] == 1.0
    assert sorted("diverged" in cell for _, cell in trials_of(run)) == [False, True]
    with pytest.warns(RetainWarning, match="diverges under SGD"), pytest.raises(InputError, match="search: expected a strength of 'ewc' that does not"):
        execute(study, study.spec("quick", [*TINY, *small, "search={ewc: [1.0e+30, 1.0e+31]}"]), tmp_path)
    trial = next(path for path in (tmp_path / "benchmark" / "cells").iterdir() if "diverged" in (path / "seed-0" / "result.json").read_text())
    with pytest.raises(InputError, match="a trial of the search"):
        write_report(Run(trial))
    alone = study.spec("quick", [*TINY, *small, "search={}", "own_strengths={ewc: 1.0e+30}"])
    with pytest.warns(RetainWarning, match="diverges under SGD"), pytest.raises(RetainError, match="no longer finite"):
        execute(study, alone, tmp_path)  # what is reported has to be whole


def test_fresh_leaves_nothing_of_what_was_there(study, tmp_path, monkeypatch):
    spec = study.spec("quick", [*TINY, "methods=[ewc]", "scenarios=[task]"])
    run = execute(study, spec, tmp_path)
    before = sorted(tmp_path.rglob("result.json"))
    assert len(before) == 2 + 2 * 2
    for path in before:
        path.write_text(path.read_text().replace('"setting": "', '"setting": "stale '))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("retain.studies.benchmark.study.run", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(study, spec.model_copy(update={"seeds": 1}), tmp_path, fresh=True)
    assert not run.seeds()
    with pytest.raises(InputError, match="the search"):
        execute(study, spec, tmp_path)
    monkeypatch.undo()
    execute(study, spec.model_copy(update={"seeds": 1}), tmp_path, resume=True)
    assert execute(study, spec, tmp_path, resume=True).results() != [] and sorted(tmp_path.rglob("result.json")) == before
    assert not any("stale" in path.read_text() for path in before) and not (run.path / "fresh.json").exists()
    assert run.read("summary.json")["notes"][-1].startswith("On the embedded")


def test_parts_of_another_version_are_told(study, run, tmp_path):
    copied = tmp_path / "benchmark"
    shutil.copytree(run.path.parent, copied)
    here = copied / run.path.name
    (here / "seed-1" / "result.json").unlink()
    old = copied / "cells" / Run(here).read("seed-1/cells.json")["cells"][0] / "seed-1" / "env.json"
    old.write_text(old.read_text().replace('"torch": "', '"torch": "1.'))
    assert execute(study, study.spec("quick", TINY), tmp_path, resume=True).path == here
    write_report(Run(here))
    (said,) = [note for note in Run(here).read("summary.json")["notes"] if "different versions" in note]
    assert said.count("torch") == 2 and "torch 1." in said


def test_a_setting_that_came_later_leaves_old_runs_what_they_were(study, run, tmp_path):
    copied = tmp_path / "benchmark"
    shutil.copytree(run.path.parent, copied)
    stored = copied / run.path.name / "spec.json"
    settings = json.loads(stored.read_text())
    assert settings["settings"].pop("trial") is False and settings["settings"].pop("trial_divisor") == 4
    assert settings["settings"].pop("carry_optimizer") is False and settings["settings"].pop("fisher_samples") is None
    stored.write_text(json.dumps(settings))
    spec = study.spec("quick", TINY)
    assert execute(study, spec, tmp_path, at=stored.parent, resume=True).path == stored.parent
    assert spec.fingerprint(study) == run.path.name != spec.model_copy(update={"trial": True}).fingerprint(study)
    with pytest.raises(InputError, match="trial: expected false"):
        execute(study, spec.model_copy(update={"trial": True}), tmp_path)
