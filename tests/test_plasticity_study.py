"""The plasticity study: from its settings to the page, broken off and resumed, and what it says."""

import csv
import json

import pytest
import torch

from retain import models
from retain.errors import InputError, RetainError
from retain.report import write_report
from retain.runs import execute
from retain.studies import find
from retain.studies.plasticity import gradient, noise, study, variants
from retain.studies.plasticity.rows import layers_of
from retain.studies.plasticity.spec import PlasticitySpec

SMALL = [
    "validation=8500",
    "rule_epochs=3",
    "rule_lr=0.1",
    "attempts=2",
    "curve_every=500",
    "rates=[0.01]",
    "rows=[rnn,prepost-2,prepostcount-3,vanilla,tuned]",
    "variants=[averaged,network,local-fixed,local-transport]",
    "widths=[40]",
    "targets=[mnist]",
    "carried=[prepost-2,local-fixed]",
    "carry_widths=[30,60]",
    "carry_layers=[2,3]",
    "carry_shares=[0.5]",
    "sizes=[0.0,0.1]",
    "attacked=50",
    "pgd_steps=2",
    "width=40",
    "cap=20",
    "seeds=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    found = find("plasticity")
    return execute(found, found.spec("quick", SMALL), tmp_path_factory.mktemp("plasticity"))


def test_every_part_says_what_it_found(run):
    for result in run.results():
        rows = {entry["row"]: entry for entry in result["rows"]}
        assert list(rows) == ["rnn", "prepost-2", "prepostcount-3", "vanilla", "tuned"]
        for row in ("rnn", "prepost-2", "prepostcount-3"):
            entry = rows[row]
            last = entry["attempts"][-1]
            assert entry["accepted"] == (last["validation"] >= 0.7) and (entry["accepted"] or len(entry["attempts"]) == 2)
            assert len(last["loss"]) == 3 and len(last["tested"]) == 4 and last["changed"]
            assert entry["down"] == last["down"] and entry["down"]["samples"] == [0, 500, 1000, 1500]
        assert rows["prepost-2"]["down"]["test"][0] == rows["prepost-2"]["start"] == 0.1  # nothing learned: class 0
        assert set(rows["tuned"]["nets"]) == {"0", "2", "3"} and rows["tuned"]["down"]["test"][-1] > 0.6
        cells = {cell["variant"]: cell for cell in result["variants"]}
        assert cells["averaged"]["down"]["test"][-1] > 0.5 and cells["averaged"]["start"]["test"][-1] == 0.1
        assert cells["local-transport"]["start"]["test"][-1] > 0.3  # where that rule starts is no zero
        carried = [(cell["rule"], cell["axis"], cell["value"]) for cell in result["carry"]]
        assert ("prepost-2", "layers", 3) in carried and ("local-fixed", "data", "fashion") in carried
        assert not any(rule == "local-fixed" and axis == "layers" for rule, axis, _ in carried)
        for entry in result["noise"]:
            assert entry["pgd"][0] == entry["random"][0] >= entry["pgd"][1] and len(entry["fgsm"]) == 2
    assert run.read("summary.json")["headline"].startswith("MNIST after 1 pass: recurrent")


def test_curves_are_there_as_csv(run):
    rows = list(csv.DictReader((run.path / "epochs.csv").read_text().splitlines()))
    mine = [row for row in rows if row["stage"] == "prepost-2@rows" and row["seed"] == "1"]
    first = [row for row in mine if row["task"] == "mnist"][:4]
    assert [row["samples"] for row in first] == ["0", "500", "1000", "1500"] and all(row["accuracy:test"] for row in first)
    assert [row["epoch"] for row in mine if row["task"] == "halfspace-16" and row["loss"]][:3] == ["1", "2", "3"]


def test_page(run):
    text = write_report(run).read_text()
    for words in (
        "The rows of the published plot",
        "Every try",
        "Gradient descent on the same networks, tuned",
        "Rules carried to MNIST",
        "Carried to other sizes and data",
        "Noise",
    ):
        assert words in text
    assert text.count("<svg") >= 12 and "Reported by the notebook" in text


def test_a_run_that_was_broken_off_goes_on_with_the_same_bits(run, tmp_path):
    found = find("plasticity")
    spec = found.spec("quick", SMALL)

    def stop(seed, arm, kind, fields):
        if seed == 1 and arm == "local-transport@variants" and kind == "samples" and fields["samples"] == 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(found, spec, tmp_path, listener=stop, every=0)
    again = execute(found, spec, tmp_path, resume=True, every=0)
    for there, here in zip(run.results(), again.results(), strict=True):
        for part in ("rows", "variants", "carry", "noise"):
            assert json.dumps(there[part]) == json.dumps(here[part]), part
    files = [one.path / "seed-1" / "events.jsonl" for one in (run, again)]
    kinds = [[(json.loads(line)["arm"], json.loads(line)["kind"]) for line in file.read_text().splitlines()] for file in files]
    assert kinds[0] == kinds[1]  # no event twice, none missing


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cap=200", "cap: expected at most the width, 100"),
        ("validation=10000", "fewer than the 10000 training images"),
        ("device=cuda", "device: expected cpu"),
        ("form=multiplicative", "form: expected additive, since averaged"),
        ("loss=mse", "double_softmax: expected the cross-entropy"),
        ("widths=[100,100]", "widths: expected every entry once"),
    ],
)
def test_settings_that_do_not_go_together(setting, said, tmp_path):
    found = find("plasticity")
    with pytest.raises(InputError, match=said):
        execute(found, found.spec("quick", [setting]), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_without_numba_it_says_how_to_get_it(monkeypatch):
    found = find("plasticity")
    monkeypatch.setattr(study, "available", lambda: False)
    with pytest.raises(RetainError, match=r"pip install 'retain\[plasticity\]'"):
        found.check(found.spec("quick"))


def test_layers_of_a_row():
    assert [layers_of(row) for row in ("rnn", "rnn-mistakes", "prepost-2", "prepostcount-4", "prepost-2-trained", "tuned")] == [0, 0, 2, 4, 2, 2]


def test_published_gradient_descent_leaves_the_hidden_matrices_alone():
    spec = PlasticitySpec(validation=9500)
    task = variants.target(spec, "mnist", 0)
    net = models.FeedForwardAssembly(784, 10, layers=2, width=20, cap=10, start="uniform")
    hidden, first = net.hidden[0].detach().clone(), net.input_weight.detach().clone()
    gradient.published(net, task, passes=1, seed=0, every=0)
    assert torch.equal(net.hidden[0], hidden) and not torch.equal(net.input_weight, first)
    assert net.input_weight.abs().max() < 1


def test_attacks_stay_in_reach_and_do_harm():
    net = models.FeedForwardAssembly(12, 3, layers=1, width=30, cap=15, start="uniform", seed=1)
    images = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = net(images).argmax(1)
    for steps in (1, 5):
        moved = noise.attack(net, images, labels, 0.1, steps)
        assert (moved - images).abs().max() <= 0.1 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
        with torch.no_grad():
            assert (noise.margin(net, moved, labels) <= noise.margin(net, images, labels)).all()
    with torch.no_grad():
        assert (net(moved).argmax(1) == labels).double().mean() < 0.8
    assert torch.equal(noise.attack(net, images, labels, 0.0, 3), images)


def test_runs_can_be_compared_and_notes_said_once(run):
    from retain.report.compare import compare

    found = compare([run, run])[1]
    arms = [row[0] for row in found.rows]
    assert "prepost-2, accepted %" in arms and "averaged, mnist, width 40 %" in arms and all(row[1] == row[2] != "" for row in found.rows)
    notes = run.read("summary.json")["notes"]
    assert sum("Embedded subset" in note for note in notes) == 1


def test_a_recurrent_network_of_no_rounds_has_no_graph_to_draw(tmp_path):
    found = find("plasticity")
    settings = ["experiments=[rows]", "rows=[rnn]", "rounds=0", "rule_epochs=1", "attempts=1", "validation=9500", "curve_every=500", "seeds=1"]
    run = execute(found, found.spec("quick", settings), tmp_path)
    assert "table-graph" not in write_report(run).read_text()


def test_every_experiment_gives_numbers(run):
    found = find("plasticity")
    numbers = found.summarise(found.spec("quick", SMALL), run.results()).numbers
    for arm in ("prepost-2", "averaged, mnist", "local-fixed, carried", "tuned-1, noise"):
        assert all({"mean", "error", "seeds"} == set(value) for value in numbers[arm].values()), arm
