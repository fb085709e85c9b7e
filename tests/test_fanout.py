"""Runs in pieces: other processes, clusters, real kills, equal bits, grids that share cells."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import Field

from retain import studies
from retain.errors import InputError, RetainError
from retain.figures import Lines, Series, Table
from retain.runs import Run, execute, list_runs
from retain.runs.grid import Grid, PieceError, PieceInputError
from retain.runs.pieces import End, Piece, claimed, work
from retain.studies import find
from retain.studies.base import Outcome, Plan, Spec, Study

HERE = Path(__file__).parent


class TallySpec(Spec):
    parts: tuple[str, ...] = Field(("a", "b"), description="one cell each")
    steps: int = Field(12, description="of every part")
    pause: float = Field(0.0, description="seconds a step")
    same: bool = Field(False, description="cut into equal cells")


class Tally(Study):
    """A walk a part, one cell each. In the folder ``data`` the file ``log`` gets a line for what is begun and for every step, and files such as
    ``raise-PART`` let a part fail."""

    name, title, question = "tally", "Tally", "How far does a walk come?"
    presets = {"quick": {"threads": 1, "seeds": 1}, "paper": {"threads": 2}}  # noqa: RUF012
    spec_type = TallySpec

    def plan(self, spec):
        return Plan(3, {}, self.stages(spec), spec.steps, 0.0, "none")

    def check(self, spec):
        pass

    def stages(self, spec):
        return list(spec.parts)

    def cells(self, spec):
        return [spec.model_copy(update={"parts": spec.parts[:1] if spec.same else (part,)}) for part in spec.parts]

    def join(self, spec, found):
        return {"parts": {part: one["parts"][part] for part, one in zip(spec.parts, found, strict=True) if one is not None}}

    def run(self, spec, seed, keeper):
        (part,) = spec.parts
        recorder = keeper.recorder(part)
        state = recorder.load() or {"x": torch.full((3,), 0.1 * (seed + 1) + len(part)), "step": 0}
        note(spec, f"begin {part} {seed} {state['step']} {os.getpid()}")
        wrong = {path.name for path in Path(spec.data).glob(f"*-{part}")} if spec.data else set()
        if f"refuse-{part}" in wrong:
            raise InputError("parts", "a part that goes well", part)
        if f"raise-{part}" in wrong:
            raise ZeroDivisionError("a mistake in the study")
        if f"die-{part}" in wrong:
            os.kill(os.getpid(), signal.SIGKILL)
        x = state["x"]
        for step in range(state["step"], spec.steps):
            x = torch.sin(3.7 * x + 0.1 * ord(part[0])) + 0.01 * x.flip(0)
            note(spec, f"step {part} {seed} {step}")
            recorder.event("epoch", task=part, epoch=step + 1, epochs=spec.steps, loss=float(x.sum()), accuracy={part: float(x[0].abs())})
            recorder.save(lambda x=x, step=step: {"x": x, "step": step + 1, "done": False})
            time.sleep(300 if spec.data and (Path(spec.data) / f"sleep-{part}").exists() else spec.pause)
        recorder.save(lambda: {"x": x, "step": spec.steps, "done": True}, final=True)
        return {"parts": {part: x.tolist()}}

    def summarise(self, spec, results):
        rows = [[part, *(f"{result['parts'].get(part, [float('nan')])[0]:.3f}" for result in results)] for part in spec.parts]
        numbers = {part: len([result for result in results if part in result["parts"]]) for part in spec.parts}
        figure = Lines("Ends", "seed", "x", [Series(part, [0, 1], [0, 1]) for part in spec.parts], id="ends", caption="One line a part.")
        return Outcome(f"Walked: {' '.join(numbers)}.", [Table("Ends", ["part", *map(str, range(len(results)))], rows)], [figure], [], numbers)


def note(spec, text):
    if spec.data:
        with (Path(spec.data) / "log").open("a") as file:  # short lines are appended whole
            file.write(text + "\n")


def noted(folder, kind):
    return [tuple(line.split()[1:]) for line in (Path(folder) / "log").read_text().splitlines() if line.startswith(kind)]


def tally(*settings, seeds=1, data=None):
    study = Tally()
    return study, study.spec("quick", [*settings, f"seeds={seeds}", *([f"data={data}"] if data else [])])


@pytest.fixture
def registered(monkeypatch):
    for table, entry in ((studies._STUDIES, "test_fanout:Tally"), (studies.SUMMARIES, "a walk")):
        monkeypatch.setitem(table, "tally", entry)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def ends(out):
    """Results of runs and cells by their place, as bytes."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("result.json"))}


def list_runs_of(out):
    return [run.path for run in list_runs(out)]


def alone(tmp_path, *settings, seeds=1):
    """The same run in this process, without a log, as the measure."""
    execute(*tally(*settings, seeds=seeds), tmp_path / "alone", every=0)
    return ends(tmp_path / "alone")


def test_a_run_keeps_freed_memory(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("retain.training.devices.keep_freed_memory", lambda: asked.append(True))
    alone(tmp_path)
    assert asked


def killer(kill, part, epoch):
    """A listener that calls ``kill`` once, when a part comes to an epoch."""
    done = []

    def listener(seed, arm, kind, fields):
        if kind == "epoch" and arm == part and fields["epoch"] >= epoch and not done:
            done.append(epoch)
            kill()

    return listener


def check_went_on(data, part, steps, killed_after):
    """Begun twice, the second time from the checkpoint: no step before it was walked again, and all were walked."""
    first, second = noted(data, f"begin {part} ")
    assert int(first[2]) == 0 and killed_after - 1 <= int(second[2]) < steps
    walked = [int(words[2]) for words in noted(data, f"step {part} ")]
    assert sorted(set(walked)) == list(range(steps))
    assert [step for step in set(walked) if walked.count(step) > 1] in ([], [int(second[2])])


def test_processes_give_the_same_bits_as_one(tmp_path):
    from conftest import TINY
    from test_runs import contents

    study = find("forgetting")
    spec = study.spec("quick", [*(word for word in TINY if word != "--set"), "seeds=2", "arms=[plain,ewc]", "strengths=[]", "epochs=1"])
    seen = set()
    execute(study, spec, tmp_path / "one")
    run = execute(study, spec, tmp_path / "two", jobs=2, listener=lambda seed, arm, kind, fields: seen.add((seed, arm, kind)))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {(seed, arm, kind) for seed in (0, 1) for arm in ("first", "plain", "ewc") for kind in ("epoch", "done")} <= seen
    assert (run.path / "epochs.csv").read_text().count("\n") > 6


def test_a_killed_process_is_replaced_and_its_piece_goes_on(tmp_path, data):
    settings = ("steps=14", "pause=0.05")
    whole = alone(tmp_path, *settings)
    kill = killer(lambda: os.kill(int(noted(data, "begin a ")[0][3]), signal.SIGKILL), "a", 6)
    said = []

    def listener(*event):
        said.append(event)
        kill(*event)

    execute(*tally(*settings, data=data), tmp_path / "out", every=0, jobs=2, listener=listener)
    assert ends(tmp_path / "out") == whole
    check_went_on(data, "a", 14, 6)
    assert len(noted(data, "begin b ")) == 1 and len(noted(data, "step b ")) == 14
    assert any(kind == "note" and "SIGKILL" in fields["text"] and "parts=a" in fields["text"] for _, _, kind, fields in said)


def test_a_damaged_checkpoint_says_how_to_go_on_without_it(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    study, spec = tally("parts=[a]")
    with pytest.raises(KeyboardInterrupt):
        execute(study, spec, tmp_path / "out", every=0, listener=killer(stop, "a", 6))
    (file,) = (tmp_path / "out").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"checkpoint: expected one that can be read at .*a\.safetensors.* Remove it, and go on with --resume"):
        execute(study, spec, tmp_path / "out", resume=True)
    file.unlink()
    execute(study, spec, tmp_path / "out", resume=True)
    assert ends(tmp_path / "out") == alone(tmp_path, "parts=[a]")


def test_a_process_that_dies_three_times_fails_its_piece_alone(tmp_path, tmp_path_factory, data, registered):
    from retain.report import write_index, write_report

    (data / "die-a").touch()
    study, spec = tally("parts=[a,b,c]", data=data)
    with pytest.raises(PieceError, match=r"tally \w{8} seed 0 \(parts=a\).*SIGKILL.*3 times.*others are finished.*--resume") as caught:
        execute(study, spec, tmp_path, every=0, jobs=2)
    assert not isinstance(caught.value, InputError)
    run = next(list_runs(tmp_path))
    assert list_runs_of(tmp_path) == [run.path] and not list_runs_of(tmp_path / "tally"), "cells are no runs"
    assert run.seeds() == [] and len(noted(data, "begin a ")) == 3
    assert sorted(words[0] for words in noted(data, "begin") if words[0] != "a") == ["b", "c"]
    for made in (lambda: None, lambda: (run.path / "summary.json").unlink()):  # by the run itself, and again
        made()
        page = write_report(run).read_text()
        assert "Walked: a b c. (2 of 3 cells are finished.)" in page and "This run is not finished" in page and "--resume" in page
        summary = run.read("summary.json")
        assert summary["numbers"] == {"a": 0, "b": 1, "c": 1} and "2 of 3" in summary["headline"] and "2 of 3" in summary["notes"][0]
    assert "2 of 3 cells" in write_index(tmp_path).read_text()
    with pytest.raises(InputError, match="interrupted one"):
        execute(study, spec, tmp_path)
    (data / "die-a").unlink()
    done = execute(study, spec, tmp_path, resume=True)
    assert done.seeds() == [0] and "finished" not in done.read("summary.json")["headline"]
    assert sorted(words[0] for words in noted(data, "begin") if words[0] != "a") == ["b", "c"]
    assert ends(tmp_path) == alone(tmp_path_factory.mktemp("again"), "parts=[a,b,c]")
    header, *rows = (done.path / "epochs.csv").read_text().splitlines()
    assert header.startswith("seed,stage,task,epoch,method,cell,") and len(rows) == 3 * 12
    assert not list(tmp_path.rglob("checkpoint"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_in_a_piece_lets_the_others_finish(tmp_path, data, jobs):
    (data / "raise-a").touch()
    study, spec = tally("parts=[a,b]", data=data)
    said = []
    with pytest.raises(PieceError, match=r"seed 0 \(parts=a\): ZeroDivisionError: a mistake in the study.*error.txt") as caught:
        execute(study, spec, tmp_path, jobs=jobs, listener=lambda *event: said.append(event))
    assert not isinstance(caught.value, InputError)
    assert any(kind == "note" and "ZeroDivisionError" in fields["text"] for _, _, kind, fields in said)
    (error,) = tmp_path.rglob("error.txt")
    assert 'raise ZeroDivisionError("a mistake in the study")' in error.read_text()
    assert "1 of 2 cells" in next(list_runs(tmp_path)).read("summary.json")["headline"]
    (data / "raise-a").rename(data / "refuse-a")
    with pytest.raises(PieceInputError, match="parts: expected a part that goes well, found a") as caught:
        execute(study, spec, tmp_path, resume=True, jobs=jobs)
    assert isinstance(caught.value, InputError) and caught.value.parameter == "parts"
    (data / "refuse-a").unlink()
    execute(study, spec, tmp_path, resume=True)
    assert len(noted(data, "begin a ")) == 3 and len(noted(data, "begin b ")) == 1 and not list(tmp_path.rglob("error.txt"))


def test_grids_share_cells_and_nothing_runs_twice(tmp_path, data):
    from threading import Thread

    first = tally("parts=[a,b]", "steps=25", "pause=0.08", data=data)
    said = []
    beside = Thread(target=execute, args=(*first, tmp_path), kwargs={"jobs": 2})
    beside.start()
    while not (data / "log").exists() or not noted(data, "begin b "):
        time.sleep(0.01)
    run = execute(*tally("parts=[b,c]", "steps=25", "pause=0.08", data=data), tmp_path, listener=lambda *event: said.append(event))
    assert noted(data, "step b ")[-1][2] == "24"  # it was waited for
    beside.join()
    assert sorted(words[0] for words in noted(data, "begin")) == ["a", "b", "c"]
    assert any(kind == "note" and "another process" in fields["text"] for _, _, kind, fields in said)
    said.clear()
    both = execute(*tally("parts=[c,a]", "steps=25", "pause=0.08", data=data), tmp_path, listener=lambda *event: said.append(event))
    assert sorted(words[0] for words in noted(data, "begin")) == ["a", "b", "c"] and both.seeds() == [0]
    assert [fields["stages"] for _, _, kind, fields in said if kind == "found"] == [["c"], ["a"]]
    cells = list((tmp_path / "tally" / "cells").iterdir())
    assert len(cells) == 3 and all((cell / name).exists() for cell in cells for name in ("spec.json", "env.json", "seed-0/events.jsonl"))
    assert len(list_runs_of(tmp_path)) == 3 and Run(cells[0]).spec()["settings"]["parts"] in (["a"], ["b"], ["c"])
    names = json.loads((run.path / "seed-0" / "cells.json").read_text())["cells"]
    found = [Run(tmp_path / "tally" / "cells" / name).results()[0]["parts"] for name in names]
    assert run.results()[0]["parts"] == {**found[0], **found[1]} and list(found[0]) == ["b"]
    anew = tally("parts=[c,a]", "steps=25", "pause=0.0", data=data)
    both = execute(*anew, tmp_path)
    folders = [Grid(anew[0], anew[1], both).folder(cell) for cell in range(2)]
    before = len(noted(data, "begin"))
    with claimed(folders[1], 0) as ours:
        with pytest.raises(RetainError, match="in use: another process works on this cell"):
            execute(*anew, tmp_path, fresh=True)
        assert ours and all((folder / "seed-0" / "result.json").exists() for folder in folders)  # all or none of them
    execute(*anew, tmp_path, fresh=True)
    assert len(noted(data, "begin")) == before + 2


CLI = (
    f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.path.insert(0, {str(HERE)!r}); from retain import studies; "
    "studies._STUDIES['tally'] = 'test_fanout:Tally'; studies.SUMMARIES['tally'] = 'a walk'; from retain.cli import main; main()"
)


def command(*words):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RETAIN_CHECKPOINT_SECONDS": "0"}
    return subprocess.Popen([sys.executable, "-c", CLI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


def until(condition, process=None, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.01)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_and_a_killed_parent_leave_no_process_and_all_of_the_work(tmp_path, data):
    settings = ("steps=20", "pause=0.1")
    whole = alone(tmp_path, *settings)
    words = ["run", "tally", "--jobs", "2", "--out", str(tmp_path / "out"), "--data", str(data), "--set", "steps=20", "--set", "pause=0.1"]
    process = command(*words)
    until(lambda: (data / "log").exists() and len(noted(data, "step")) > 4, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the children too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and "--resume" in errors and errors.rstrip().endswith("--jobs 2"), errors
    until(lambda: all(gone(words[3]) for words in noted(data, "begin")))
    before = len(noted(data, "step"))
    (data / "sleep-a").touch()  # has nothing to say for a while, so that it cannot learn of its parent's death by that
    process = command(*words, "--resume")
    until(lambda: len(noted(data, "step")) > before + 4, process)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: all(gone(words[3]) for words in noted(data, "begin")), seconds=30)
    (data / "sleep-a").unlink()
    run = execute(*tally(*settings, data=data), tmp_path / "out", resume=True, every=0)
    assert ends(tmp_path / "out") == whole and run.seeds() == [0]
    assert len(noted(data, "step")) <= 2 * 20 + 4  # the steps in which two pieces were cut off twice


def test_the_display_shows_several_seeds_at_a_time(capsys):
    from rich.console import Console

    from retain.report.live import Display

    def epoch(task, value):
        return {"task": task, "epoch": 1, "epochs": 2, "loss": 0.5, "accuracy": {task: value}}

    with Display("Walks", ["a", "b", "c"], 2, together=True) as display:
        for event in ((0, "a", "epoch", epoch("x", 0.25)), (1, "a", "epoch", epoch("x", 0.5)), (0, "b", "epoch", epoch("y", 0.75)), (0, "a", "done", {})):
            display(*event)
        display(1, "", "found", {"stages": ["b", "c"], "text": "seed 1: finished before"})
        display(0, "a", "done", {})  # told again by a process that went on
        display(0, "", "note", {"text": "[one] process died"})
        console = Console(width=120)
        with console.capture() as capture:
            console.print(display._view())
        shown = " ".join(capture.get().split())
        display(1, "a", "done", {})
    assert "1 a x 1/2 0.500 x 50.0" in shown and "0 b y 1/2 0.500 y 75.0" in shown and "0 a x" not in shown and "3/6" in shown
    assert "[one] process died" in shown
    lines = [line.partition(" s] ")[2] or line for line in capsys.readouterr().err.splitlines()]
    assert [" ".join(line.split()) for line in lines] == ["seed 0 a x 25.0 %", "seed 1: finished before", "[one] process died", "seed 1 a x 50.0 %"]


@pytest.fixture(scope="module")
def ray_cluster():
    """A head and one more node, each with one processor."""
    # Ray's own processes inherit these; its workers would otherwise give way to whatever else runs
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "PYTHONPATH": str(HERE)}
    monkeypatch = pytest.MonkeyPatch()
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()
    monkeypatch.undo()


def test_a_ray_cluster_gives_the_same_bits_even_if_a_worker_is_killed(tmp_path, data, ray_cluster):
    settings = ("steps=30", "pause=0.2")
    whole = alone(tmp_path, "steps=30", "pause=0.2")
    kill = killer(lambda: os.kill(int(noted(data, "begin a ")[0][3]), signal.SIGKILL), "a", 3)
    said = []

    def listener(*event):
        said.append(event[:3])
        kill(*event)

    execute(*tally(*settings, data=data), tmp_path / "out", every=0, cluster="ray", address=ray_cluster.address, listener=listener)
    assert ends(tmp_path / "out") == whole
    check_went_on(data, "a", 30, 3)
    (b,) = noted(data, "begin b ")
    assert int(b[3]) != os.getpid() and b[3] != noted(data, "begin a ")[0][3]
    assert {(0, "", "note"), (0, "a", "epoch"), (0, "a", "done"), (0, "b", "epoch"), (0, "b", "done")} <= set(said)
    assert not list(tmp_path.rglob(".shared-*"))


def test_a_ray_node_that_does_not_fit_is_named(tmp_path, ray_cluster, monkeypatch):
    from retain import __version__
    from retain.runs.on_ray import OnRay

    study, spec = tally()
    place = OnRay(ray_cluster.address, tmp_path, spec, 0)
    monkeypatch.chdir(tmp_path)
    place.folder = Path("/proc/self/cwd")  # another folder in every process
    with pytest.raises(InputError, match=r"--out: expected a folder that all nodes share.*which node .* does not see"):
        list(place([], print))
    (tmp_path / "old" / "retain").mkdir(parents=True)
    (tmp_path / "old" / "retain" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    node = ray_cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, env_vars={"PYTHONPATH": str(tmp_path / "old")})
    try:
        with pytest.raises(RetainError, match=rf"Node .*: expected retain {__version__}, as here, found 0.0.9"):
            execute(study, spec, tmp_path / "out", cluster="ray", address=ray_cluster.address)
    finally:
        ray_cluster.remove_node(node)
    with pytest.raises(InputError, match="threads: expected at most the 1 processors"):
        execute(*tally("threads=7"), tmp_path / "out", cluster="ray", address=ray_cluster.address)


def test_jobs_of_submitit_give_the_same_bits_even_if_one_is_killed(tmp_path, data, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    settings = ("steps=20", "pause=0.2")
    whole = alone(tmp_path, *settings)
    kill = killer(lambda: os.kill(int(noted(data, "begin a ")[0][3]), signal.SIGKILL), "a", 3)
    said = []

    def listener(*event):
        said.append(event)
        kill(*event)

    run = execute(*tally(*settings, data=data), tmp_path / "out", every=0, cluster="slurm", slurm={"executor": "local", "parallel": "2"}, listener=listener)
    assert ends(tmp_path / "out") == whole
    check_went_on(data, "a", 20, 3)
    assert len(noted(data, "begin b ")) == 1
    assert said[0][3] == {"text": "pieces handed to SLURM: 2, 2 at a time"}
    assert any(kind == "note" and "was lost" in fields["text"] for _, _, kind, fields in said)
    assert {(0, "a", "done"), (0, "b", "done")} <= {event[:3] for event in said} and list((run.path / "submitit").iterdir())


def test_a_piece_is_refused_by_another_version(tmp_path):
    study, spec = tally()
    piece = Grid(study, spec, Run(tmp_path / "tally" / "run")).pieces()[0]

    def other(**changes):
        return Piece(**{**vars(piece), **changes})

    for changed, said in (
        (other(retain="0.0.9"), r"expected retain 0\.0\.9, .*found retain \d.*Install"),
        (other(version=7), "expected study tally version 7, .*found study tally version 1"),
        (other(fingerprint="00000000"), "expected settings 00000000"),
        (other(source="nowhere:Tally"), "cannot be imported.*nowhere"),
    ):
        with pytest.raises(RetainError, match=said):
            work(changed)
    Run(Path(piece.folder)).write("env.json", {"torch": "1.0"})
    with pytest.raises(RetainError, match=r"expected torch 1\.0"):
        work(piece)
    assert not list(tmp_path.rglob("seed-0"))
    Run(Path(piece.folder)).write("env.json", {"torch": torch.__version__})
    with claimed(Path(piece.folder), 0) as ours:
        assert ours and work(piece) == End("busy")
    assert work(piece) == End("done") and piece.finished and work(piece) == End("done")


def test_a_cell_of_another_torch_is_refused_unless_forced(tmp_path, data):
    execute(*tally("parts=[a,b]", data=data), tmp_path)
    (cell,) = [path for path in (tmp_path / "tally" / "cells").iterdir() if Run(path).spec()["settings"]["parts"] == ["b"]]
    Run(cell).write("env.json", {**Run(cell).read("env.json"), "torch": "1.0"})
    execute(*tally("parts=[b,c]", data=data), tmp_path)  # finished cells may be of any
    with pytest.raises(RetainError, match=r"torch 1\.0.*--force"):
        execute(*tally("parts=[b,d]", seeds=2, data=data), tmp_path)
    run = execute(*tally("parts=[b,d]", seeds=2, data=data), tmp_path, force=True, resume=True)
    assert run.seeds() == [0, 1] and Run(cell).read("env.json")["torch"] == torch.__version__ and Run(cell).spec()["settings"]["seeds"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 0}, "--jobs: expected a whole number of at least 1, found 0"),
        ({"cluster": "slurn"}, "--cluster: expected ray or slurm, found 'slurn'. Did you mean 'slurm'?"),
        ({"cluster": "ray", "jobs": 2}, "--jobs: expected 1 with --cluster"),
        ({"address": "auto"}, "--address: expected --cluster ray with it"),
        ({"slurm": {"partition": "x"}}, "--slurm: expected --cluster slurm with it"),
        ({"cluster": "slurm", "slurm": {"partitoin": "x"}}, "Did you mean 'partition'?"),
        ({"cluster": "slurm", "slurm": {"timeout": "long"}}, "a whole number of at least 1 for timeout, found 'long'"),
        ({"cluster": "slurm", "slurm": {"executor": "moon"}}, "executor=slurm or executor=local, found 'moon'"),
        ({"cluster": "ray", "address": "nowhere"}, "--address: expected HOST:PORT or auto, found 'nowhere'"),
        ({"cluster": "ray", "address": "127.0.0.1:1"}, "--address: expected a Ray cluster that answers, found 127.0.0.1:1 ("),
    ],
)
def test_a_mistake_about_where_to_run_writes_nothing(tmp_path, options, said):
    with pytest.raises(InputError) as caught:
        execute(*tally(), tmp_path, **options)
    assert said in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    from retain.runs import on_ray

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no srun here"):
        execute(*tally(), tmp_path, cluster="slurm")
    monkeypatch.undo()
    monkeypatch.setattr(on_ray, "PATIENCE", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(InputError, match="silent for 3 s"):
        execute(*tally(), tmp_path, cluster="ray", address=f"127.0.0.1:{silent.getsockname()[1]}")
    for cluster, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(RetainError, match=rf"--cluster {cluster} needs.*pip install 'retain\[cluster\]'"):
            execute(*tally(), tmp_path, cluster=cluster)
    with pytest.raises(InputError, match=r"cells 1 and 2 that are equal \(\w{8}: parts=a\)"):
        execute(*tally("same=true"), tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_the_command_line(tmp_path, registered, monkeypatch, capsys):
    from retain.cli import main

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["retain", "run", "tally", "--preset", "paper", *words, "--out", str(tmp_path / "runs")])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capsys.readouterr()

    for words, text in ((["--jobs", "0"], "--jobs"), (["--cluster", "rya"], "Did you mean 'ray'?"), (["--slurm", "x", "--cluster", "slurm"], "key=value")):
        status, captured = said(*words)
        assert status == 2 and text in captured.err and not captured.out
    assert not list(tmp_path.rglob("*"))
    for words, threads in (([], 2), (["--jobs", "2"], 1), (["--jobs", "2", "--set", "threads=2"], 2)):
        status, captured = said("--dry-run", "--json", *words)
        assert not status and json.loads(captured.out)["settings"]["threads"] == threads
