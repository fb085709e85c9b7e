"""The posterior study: from the command line to the page, killed and resumed, and what it says."""

import csv
import json

import pytest
import torch
from conftest import retain_command

from retain.errors import InputError
from retain.report import write_report
from retain.runs import execute
from retain.studies import find
from retain.studies.bayes import digits, single
from retain.studies.bayes.figures import epochs_to_share
from retain.studies.bayes.spec import BayesSpec

SMALL = [
    "hidden=[16]",
    "chain_hidden=[16]",
    "flow_hidden=[4]",
    "net_hidden=[16]",
    "validation=9000",
    "epochs=3",
    "batch_size=32",
    "chain_epochs=1",
    "single_epochs=1",
    "net_epochs=2",
    "fractions=[1.0,0.2]",
    "heads=[separate,shared]",
    "parts=[digits,rotation,split,permuted,schemes,flows,prediction]",
    "angles=[0,30]",
    "permutations=2",
    "coreset=20",
    "coreset_epochs=2",
    "chained=[vcl,coreset,ewc]",
    "flows=[0,2]",
    "answers=3",
    "cuts=[0.0,0.9]",
    "threads=1",
    "seeds=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = find("bayes")
    return execute(study, study.spec("quick", SMALL), tmp_path_factory.mktemp("bayes"))


def test_every_part_says_what_it_found(run):
    results = run.results()
    entry = next(e for e in results[0]["digits"] if (e["head"], e["fraction"], e["arm"]) == ("separate", 1.0, "posterior"))
    assert entry["rows"][-1][0] > 0.8 and entry["moved"] > 0 and len(entry["history"]) == 3
    assert {"loss", "score", "kl", "nll", "validation", "validation_nll"} <= set(entry["history"][0])
    scratch = next(e for e in results[0]["digits"] if (e["head"], e["fraction"], e["arm"]) == ("separate", 1.0, "scratch"))
    assert scratch["moved"] > entry["moved"]  # a posterior that started elsewhere is farther from the old one
    assert {e["method"] for e in results[0]["split"]} == {"vcl", "coreset", "ewc"}
    assert [e["flows"] for e in results[0]["flows"]] == [0, 2]
    weights = {e["scheme"]: e["weight"] for e in results[0]["schemes"]}
    assert weights["per-sample"] == 1 and weights["none"] == 0 and weights["over-batches"] == 32 and weights["blundell"] == pytest.approx(1)
    nets = {e["net"]: e for e in results[0]["prediction"]}
    assert 0.5 < nets["ensemble"]["auroc"] <= 1 and len(nets["mixture"]["pruned"]) == 2 and not nets["plain"]["pruned"]
    assert run.read("summary.json")["headline"].startswith("Digits 0-4, then 5-9")


def test_curves_are_there_as_csv(run):
    rows = list(csv.DictReader((run.path / "epochs.csv").read_text().splitlines()))
    mine = [row for row in rows if row["stage"] == "posterior@separate,1" and row["seed"] == "1"]
    assert [row["epoch"] for row in mine] == ["1", "2", "3"]
    for column in ("kl", "loss", "score", "accuracy:0-4", "accuracy:5-9", "nll:5-9", "validation:5-9", "validation_nll:5-9"):
        assert all(float(row[column]) >= 0 for row in mine)


def test_page(run):
    text = write_report(run).read_text()
    for words in (
        "Digits 0-4, then 5-9: separate heads",
        "one head of five outputs",
        "Rotated digits",
        "Permuted pixels",
        "Pairs of digits",
        "How the divergence is weighed",
    ):
        assert words in text
    for words in ("Planar flows", "Reliability", "Pruning by signal to noise", "Reported by the notebook", "epochs.csv"):
        assert words in text
    assert text.count("<svg") >= 14


def test_a_method_has_one_colour_in_all_figures(run):
    study = find("bayes")
    figures = {figure.id: figure for figure in study.summarise(study.spec("quick", SMALL), run.results()).figures}
    colours = lambda series: {one.name: one.color for one in series}  # noqa: E731
    arms = colours(next(iter(figures["separate-new"].panels.values())))
    streams, nets, cut = (colours(figures[name].series) for name in ("rotation", "reliability", "pruning"))
    assert streams["EWC"] == arms["EWC"] and streams["VCL"] == arms["posterior as prior"]
    assert len(cut) == 2 and all(nets[name] == colour for name, colour in cut.items())
    assert list(nets)[1:] == list(figures["entropy"].panels["digits"]) and list(nets.values())[1:] == list(range(len(nets) - 1))  # bars are coloured in order
    for heights in figures["entropy"].panels.values():
        assert all(sum(bars) == pytest.approx(100) for bars in heights.values())
    assert figures["rotation-matrix"].x_labels == ["0°", "30°"]


def test_a_run_that_was_broken_off_goes_on_with_the_same_bits(run, tmp_path):
    study = find("bayes")
    spec = study.spec("quick", SMALL)

    def stop(seed, arm, kind, fields):
        if seed == 1 and arm == "exact@separate,1" and kind == "epoch" and fields["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study, spec, tmp_path, listener=stop, every=0)
    again = execute(study, spec, tmp_path, resume=True, every=0)
    kept = ("digits", "rotation", "split", "permuted", "schemes", "flows", "prediction")
    for there, here in zip(run.results(), again.results(), strict=True):
        for part in kept:
            assert json.dumps(there[part]) == json.dumps(here[part]), part


def test_the_two_tasks():
    spec = BayesSpec(validation=2000)
    separate, shared = (digits.stream(spec, 0, head, 0.5) for head in ("separate", "shared"))
    whole = digits.stream(spec, 0, "separate", 1.0)
    assert [task.id for task in separate] == ["0-4", "5-9"] and separate[1].active == (5, 6, 7, 8, 9)
    assert separate[1].n == round(0.5 * whole[1].n) and separate[0].n == whole[0].n
    assert shared[1].classes == (0, 1, 2, 3, 4) and shared[1].active is None
    assert torch.equal(shared[1].data.targets + 5, separate[1].data.targets)
    assert torch.equal(whole[1].validation.targets, separate[1].validation.targets)  # a fraction of the training images alone


def test_epochs_to_a_share_of_the_end():
    history = [{"accuracy": {"a": 0.0, "b": value}} for value in (0.5, 0.94, 0.96, 1.0)]
    assert epochs_to_share({"history": history}) == 3.0


def test_schemes_by_name():
    spec = BayesSpec(batch_size=50, single_epochs=8)
    assert single.weighting("warm-up", spec, 1000).factor(20) == 0.5  # a quarter of the epochs: 40 steps


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("arms=[scratch,scratch]", "every entry once"),
        ("flows=[-1]", "flows.0: expected greater than or equal to 0"),
        ("heads=[]", "heads: expected at least 1 item, "),
        ("hidden=64", r"expected a list in brackets, found 64. Write hidden=\[64\]"),
        ("beta=.inf", "beta: expected a finite number"),
        ("prior_std=1e-300", "prior_std"),
        ("sigma1=1e300", "sigma1"),
        ("logvar=1000", "logvar"),
        ("validation=9901", "at least 100 training images left, found 99 left of 10000"),
        ("fractions=[0]", "fractions"),
        ("parts=[]", "parts"),
        ("schemes=[]", "schemes"),
        ("draws=0", "draws"),
        ("validation=10000", "validation"),
    ],
)
def test_bad_settings(setting, words):
    study = find("bayes")
    with pytest.raises(InputError, match=words):
        study.check(study.spec("quick", [setting]))


def test_from_the_command_line(tmp_path):
    options = [f"--set={s}" for s in (*SMALL, "parts=[digits]", "fractions=[0.2]", "heads=[separate]", "arms=[scratch,posterior]", "seeds=1")]
    done = retain_command("run", "bayes", "--json", "--out", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "posterior, separate, 0.2" in json.dumps(found)
    done = retain_command("run", "bayes", "--set", "start=here", "--out", str(tmp_path / "x"), *options)
    assert done.returncode == 2 and "--from" in done.stderr and not (tmp_path / "x").exists()
