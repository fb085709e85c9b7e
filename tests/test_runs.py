"""Run folders: real kills, equal bits, refusals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, retain_command

from retain.errors import InputError, RetainError
from retain.report import compare
from retain.runs import Run, execute, find_run, list_runs
from retain.runs.execute import differences
from retain.runs.folder import plain, revive
from retain.studies import find


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RETAIN_CHECKPOINT_SECONDS": "0"}
    # a runner in the background may ignore Ctrl-C, and children inherit that
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from retain.cli import main; main()"
    command = [sys.executable, "-c", script, "run", "forgetting", *TINY, "--seeds", "2", "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def contents(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on a kill: weights, beliefs, results, events without their clock."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.suffix == ".safetensors" or path.name in ("result.json", "summary.json"):
            found[path.relative_to(out).as_posix()] = path.read_bytes()
        if path.name == "events.jsonl":
            events = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.relative_to(out).as_posix()] = json.dumps([{k: v for k, v in e.items() if k != "seconds"} for e in events]).encode()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    process = start(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize(("event", "how"), [(2, signal.SIGKILL), (5, signal.SIGKILL), (9, signal.SIGINT), (16, signal.SIGKILL)])
def test_killed_and_resumed_gives_the_same_bits(whole, tmp_path, event, how):
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while sum(len(path.read_text().splitlines()) for path in tmp_path.glob("*/*/seed-*/events.jsonl")) < event:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "--resume" in errors and "Traceback" not in errors
    refused = start(tmp_path)
    _, errors = refused.communicate(timeout=120)
    assert refused.returncode == 2 and "--resume" in errors and "interrupted" in errors
    resumed = start(tmp_path, "--resume")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("k", range(int(os.environ.get("RETAIN_KILLS", 1))))
def test_killed_again_and_again_at_any_instant(whole, tmp_path, k):
    """Three kills at random instants, imports and writes included; RETAIN_KILLS repeats it."""
    seed = k if "RETAIN_KILLS" in os.environ else time.time_ns()
    print(f"seed {seed}")  # shown by pytest if this fails
    draw = random.Random(seed)
    for _ in range(3):
        process = start(tmp_path, "--resume")
        time.sleep(draw.uniform(0, 12))
        process.kill()
        process.communicate(timeout=60)
    last = start(tmp_path, "--resume")
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert contents(tmp_path) == contents(whole)


def test_a_finished_run_is_not_run_again_and_seeds_can_be_added(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run = next(list_runs(tmp_path))
    before = (run.path / "seed-0" / "result.json").stat().st_mtime_ns
    done = start(tmp_path, "--seeds", "3")
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    assert run.seeds() == [0, 1, 2] and (run.path / "seed-0" / "result.json").stat().st_mtime_ns == before
    again = start(tmp_path)  # two seeds asked for: the third is not hidden
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "over 3 seeds" in said and run.spec()["settings"]["seeds"] == 3


def test_two_processes_do_not_write_into_one_run(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run = next(list_runs(tmp_path))
    study = find("forgetting")
    spec = study.spec_type.parse(run.spec()["settings"])
    with run.locked(), pytest.raises(RetainError, match="another process"):
        execute(study, spec, tmp_path)


def test_mistakes_write_nothing_and_fresh_spares_other_specs(whole, tmp_path):
    study = find("forgetting")
    with pytest.raises(InputError, match="train-images"):
        execute(study, study.spec("quick", ["embedded=false", "data=/nowhere"]), tmp_path)
    with pytest.raises(InputError, match="at most"):
        execute(study, study.spec("quick", ["fisher_samples=99999"]), tmp_path)
    with pytest.raises(InputError, match="run's folder"):
        execute(study, study.spec("quick"), tmp_path, at=tmp_path / "nothing", resume=True)
    assert not list(tmp_path.iterdir())
    run = next(list_runs(whole))
    with pytest.raises(InputError, match=r"lr: 0\.1 there, 0.5 here"):
        execute(study, study.spec_type.parse({**run.spec()["settings"], "lr": 0.5}), tmp_path, at=run.path, resume=True, fresh=True)
    assert run.seeds() == [0, 1]


def test_shortened_events_are_no_harm(whole, tmp_path):
    process = start(tmp_path)
    while not list(tmp_path.rglob("plain.safetensors")):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    next(tmp_path.rglob("events.jsonl")).write_text("")
    resumed = start(tmp_path, "--resume")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    for path in tmp_path.rglob("events.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())
    assert {k: v for k, v in contents(tmp_path).items() if "seed-0/events" not in k} == {k: v for k, v in contents(whole).items() if "seed-0/events" not in k}


def test_a_changed_spec_is_refused_with_the_difference(whole):
    run = next(list_runs(whole))
    done = retain_command("run", "forgetting", *TINY, "--set", "lr=0.05", "--resume", str(run.path))
    assert done.returncode == 2 and "lr: 0.1 there, 0.05 here" in done.stderr and "Traceback" not in done.stderr
    assert run.seeds() == [0, 1]


def test_another_torch_is_refused_unless_forced(whole, tmp_path):
    run = next(list_runs(whole))
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "seed-1" / "result.json").unlink()
    environment = json.loads((copy / "env.json").read_text())
    (copy / "env.json").write_text(json.dumps({**environment, "torch": "1.0"}))
    study = find("forgetting")
    spec = study.spec_type.parse(run.spec()["settings"])
    with pytest.raises(RetainError, match=r"torch 1.0.*--force"):
        execute(study, spec, tmp_path, at=copy, resume=True)
    execute(study, spec, tmp_path, at=copy, resume=True, force=True)
    assert str(Run(copy).results()) == str(run.results())


def test_results_hold_what_they_say(whole):
    run = next(list_runs(whole))
    result = run.results()[0]
    assert set(result["arms"]) == {"first", "plain", "ewc", "laplace", "l2sp", "joint"}
    first, plain_arm, ewc = (result["arms"][arm]["rows"] for arm in ("first", "plain", "ewc"))
    assert plain_arm[:2] == ewc[:2] == first  # the arms of a seed share their first-task model
    assert ewc[2][0] > plain_arm[2][0]
    events = [json.loads(line) for line in (run.path / "seed-0" / "events.jsonl").read_text().splitlines()]
    assert [e["arm"] for e in events if e["kind"] == "epoch"] == [
        arm for arm in ("first", "plain", "ewc", "laplace", "l2sp", "joint", "ewc@100") for _ in range(2)
    ]
    assert all({"seconds", "task", "epoch", "loss", "accuracy"} <= set(e) for e in events)
    assert not (run.path / "seed-0" / "checkpoint").exists()
    for name in ("spec.json", "env.json", "summary.json", "seed-0/result.json"):
        assert json.loads((run.path / name).read_text())["schema"] == 1


def test_the_hash_covers_what_changes_numbers():
    study = find("forgetting")
    base = study.spec("quick")
    assert base.fingerprint(study) == study.spec("quick", ["seeds=9", "data=/elsewhere"]).fingerprint(study)
    for change in ("lr=0.2", "epochs=9", "labels=empirical", "threads=1", "hidden=[3]"):
        assert study.spec("quick", [change]).fingerprint(study) != base.fingerprint(study)


def test_from_a_stored_model(whole, tmp_path):
    run = next(list_runs(whole))
    done = retain_command("run", "forgetting", *TINY, "--seeds", "1", "--from", str(run.path), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = next(list_runs(tmp_path)).results()[0]["arms"]["plain"]["rows"]
    assert found[1:] == run.results()[0]["arms"]["plain"]["rows"][1:]
    assert found[0][0] != found[0][0]  # nobody saw it before
    refused = retain_command("run", "forgetting", *TINY, "--set", "hidden=[8]", "--from", str(run.path), "--out", str(tmp_path))
    assert refused.returncode == 2 and "shape" in refused.stderr


def test_runs_are_found(whole, tmp_path):
    run = next(list_runs(whole))
    for reference in (str(run.path), run.path.name, run.path.name[:4], "forgetting"):
        assert find_run(reference, whole).path == run.path
    with pytest.raises(InputError, match="Did you mean"):
        find_run(f"forgetting/{run.path.name}x", whole)
    with pytest.raises(InputError, match="no runs under"):
        find_run("forgetting", tmp_path)


def test_comparing(whole, tmp_path):
    run = next(list_runs(whole))
    with pytest.raises(InputError, match="at least two"):
        compare([run])
    tables = compare([run, run])
    assert tables[0].rows == [] and "ewc, mnist %" in [row[0] for row in tables[1].rows]


def test_json_holds_no_nan():
    value = {"a": [1.0, float("nan"), (2, float("inf"))], 3: None}
    assert plain(value) == {"a": [1.0, None, [2, None]], "3": None}
    assert str(revive(plain({"a": [float("nan")]}))) == "{'a': [nan]}"


def test_differences_are_shown():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "c": 5}, {"c"}) == ["b: 2 there, 4 here"]
