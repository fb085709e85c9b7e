"""The table of epochs of a run."""

import csv
import json

import pytest
from conftest import TINY

from retain.errors import RetainError
from retain.runs import Run, execute
from retain.runs.curves import write_epochs
from retain.studies import find


def table(run):
    with (run.path / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(run, seed):
    lines = (run.path / f"seed-{seed}" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "epoch"]


def write(path, seed, *lines):
    folder = path / f"seed-{seed}"
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def event(**fields):
    return {"seconds": 0.5, "kind": "epoch", "arm": "plain", "task": "a", "epoch": 1, **fields}


def test_columns_and_rows(tmp_path):
    write(tmp_path, 10, event(loss=0.1))
    write(
        tmp_path,
        2,
        {"seconds": 0.1, "kind": "step", "arm": "plain", "q": 0.5},
        event(loss=1 / 3, accuracy={"b": 0.5, "a": 1}, method="EWC(1, 2)", note="text", good=True, list=[1]),
        event(epoch=2, arm='x, "y"', accuracy={"a": None, "c": {"deep": 7}}, validation={}, loss=None),
    )
    run = Run(tmp_path)
    write_epochs(run)
    text = (tmp_path / "epochs.csv").read_bytes()
    assert text.splitlines()[0] == b"seed,stage,task,epoch,method,accuracy:a,accuracy:b,accuracy:c:deep,loss,seconds"
    assert text.splitlines()[1] == b'2,plain,a,1,"EWC(1, 2)",1,0.5,,0.3333333333333333,0.5'
    assert [list(row.values()) for row in table(run)][1:] == [
        ["2", 'x, "y"', "a", "2", "", "", "", "7", "", "0.5"],
        ["10", "plain", "a", "1", "", "", "", "", "0.1", "0.5"],
    ]
    assert float(table(run)[0]["loss"]) == 1 / 3  # to the bit


def test_seeds_are_in_order(tmp_path):
    seeds = [11, 3, 100, 0, 9, 20, 1, 10, 2]
    for seed in seeds:
        write(tmp_path, seed, event(epoch=1), event(epoch=2))
    write_epochs(Run(tmp_path))
    assert [(int(row["seed"]), int(row["epoch"])) for row in table(Run(tmp_path))] == [(seed, epoch) for seed in sorted(seeds) for epoch in (1, 2)]


@pytest.mark.parametrize("rest", ['{"seconds": 0.7, "kind": "ep', "{", "", "\x00\x00"])
def test_a_damaged_line_is_skipped(tmp_path, rest):
    write(tmp_path, 0, event(loss=1.0), rest)
    with (tmp_path / "seed-0" / "events.jsonl").open("ab") as file:
        file.write(b'{"arm": "\xff')  # not even text
    write_epochs(Run(tmp_path))
    assert [row["loss"] for row in table(Run(tmp_path))] == ["1.0"]


def test_nothing_is_written_without_epochs(tmp_path):
    write_epochs(Run(tmp_path))
    write(tmp_path, 0, {"seconds": 0.1, "kind": "step", "arm": "plain", "q": 0.5})
    write(tmp_path, 1)
    write_epochs(Run(tmp_path))
    assert not (tmp_path / "epochs.csv").exists()


def test_a_table_that_cannot_be_written_is_said(tmp_path):
    write(tmp_path, 0, event(loss=1.0))
    (tmp_path / "epochs.csv").mkdir()
    with pytest.raises(RetainError, match=r"epochs\.csv could not be written"):
        write_epochs(Run(tmp_path))


def test_a_run_writes_its_epochs_and_writes_them_anew_on_resume(tmp_path):
    study = find("forgetting")
    spec = study.spec("quick", [*TINY[1::2], "seeds=1"])
    whole = execute(study, spec, tmp_path / "whole", every=0)
    rows, told = table(whole), events(whole, 0)
    assert len(rows) == len(told) > 10
    assert list(rows[0])[:5] == ["seed", "stage", "task", "epoch", "method"] and "accuracy:mnist" in rows[0] and "accuracy:fashion" in rows[0]
    for row, found in zip(rows, told, strict=True):
        assert (row["seed"], row["stage"], row["task"], int(row["epoch"])) == ("0", found["arm"], found["task"], found["epoch"])
        assert row["method"] == found["method"] and float(row["loss"]) == found["loss"]
        for name in ("mnist", "fashion"):
            assert row[f"accuracy:{name}"] == str(found["accuracy"].get(name, ""))

    class Stop(Exception):
        pass

    heard = []

    def listener(seed, arm, kind, fields):
        heard.append(kind)
        if heard.count("epoch") == 5:
            raise Stop

    with pytest.raises(Stop):
        execute(study, spec, tmp_path / "cut", listener=listener, every=0)
    run = Run(tmp_path / "cut" / "forgetting" / whole.path.name)
    assert not (run.path / "epochs.csv").exists()
    write_epochs(run)  # of a run that is not finished, if one asks
    assert len(table(run)) == 5
    execute(study, spec, tmp_path / "cut", resume=True, every=0)
    drop = [{key: value for key, value in row.items() if key != "seconds"} for row in table(run)]
    assert drop == [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    (run.path / "epochs.csv").write_text("old")
    execute(study, spec, tmp_path / "cut")  # nothing to do but what is derived
    assert len(table(run)) == len(rows)
