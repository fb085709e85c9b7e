"""The real command line, in processes of its own."""

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY, retain_command

from retain.cli import _with_path_after_resume


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["list", "studies"], ["run", "nonsense"]])
def test_nothing_heavy_is_loaded_for_help_and_listings(words):
    script = (
        "import sys\nfrom retain.cli import main\n"
        f"sys.argv = ['retain', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'torchvision'} & set(sys.modules)\nprint('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "forgeting"], "Did you mean 'forgetting'?"),
        (["run", "forgetting", "--preset", "quik"], "Did you mean 'quick'?"),
        (["run", "forgetting", "--set", "epoch=3"], "Did you mean 'epochs'?"),
        (["run", "forgetting", "--set", "epochs"], "key=value"),
        (["run", "forgetting", "--set", "epochs=three"], "valid integer"),
        (["run", "forgetting", "--set", "preset=best"], "--preset NAME"),
        (["run", "forgetting", "--set", "arms=[]"], "at least 1 item"),
        (["run", "forgetting", "--set", "strengths=[-1]"], "greater than or equal to 0"),
        (["run", "forgetting", "--set", "strength=.inf"], "finite"),
        (["run", "forgetting", "--resume", "nowhere/run"], "a run folder with spec.json"),
        (["run", "forgetting", "--resume", "deadbeef"], "a run's folder, hash or study, found 'deadbeef'"),
        (["run", "forgetting", "--resume", "--fresh"], "--fresh: expected either --fresh, which removes what is there, or --resume, found both"),
        (["run", "forgetting", "--set", "epochs=0"], "greater than 0"),
        (["run", "forgetting", "--set", "hidden=[8"], "YAML"),
        (["run", "forgetting", "--set", "model=resnet"], "'mlp' or 'cnn'"),
        (["run", "forgetting", "--seeds", "0"], "--seeds"),
        (["run", "forgetting", "--set", "embedded=false", "--data", "/nowhere"], "MNIST/raw/train-images-idx3-ubyte"),
        (["run", "forgetting", "--from", "nothing"], "fits 0"),
        (["run", "forgetting", "--set", "device=cuda:7"], "device"),
        (["run", "forgetting", "--set", "model=cnn", "--set", "output_relu=true"], "output_relu"),
        (["list", "methodes"], "Did you mean 'methods'?"),
        (["report", "nothing"], "no runs"),
        (["compare", "nothing"], "no runs"),
        (["run", "all", "--set", "epoch=3"], "Did you mean 'epochs'?"),
        (["run", "path", "--set", "K=[0]"], "greater than 0"),
        (["run", "path", "--set", "K=[4000]"], "at most the 512 units"),
        (["cite", "nothing"], "no runs"),
        (["view"], "index.html"),
        (["dance"], "No such command"),
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(words, said, tmp_path):
    done = retain_command(*words, *(["--out", "runs"] if words[0] not in ("dance",) else []), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr and not done.stdout
    assert not list(tmp_path.rglob("result.json"))


def test_one_run_end_to_end(tmp_path):
    settings = ("seconds=0.1", "samples=600", "dense_epochs=1", "points=3", "parts=[digits]", "heads=[shared]", "fractions=[0.1]")
    settings += ("experiments=[rows]", "rows=[prepost-2,tuned]", "rule_epochs=2", "rates=[0.01]", "attempts=1")
    settings += ("sections=[curves]", "images=digits", "size=32", "per_class=[1]", "recipes=[linear-probe]", "controls=[]", "tested=20", "own_rates={}")
    settings += ("train_steps=3", "scenarios=[class]", "methods=[plain,er]", "search={}", "units=[8]")
    small = [word for setting in settings for word in ("--set", setting)]
    done = retain_command("run", "all", *TINY, *small, "--seeds", "1", "--out", "runs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # one object and nothing else
    study, bayes, path, plasticity, finetune, benchmark = answer["studies"]
    assert benchmark["headline"].startswith("class-incremental: ") and set(benchmark["numbers"]["class"]) == {"plain", "er"}
    assert bayes["headline"].startswith("Digits 0-4, then 5-9, one head of five outputs: with 10 % of the images")
    assert plasticity["headline"].startswith("MNIST after 1 pass: PrePost, 2 layers")
    assert finetune["headline"].startswith("At 1 image a class: linear-probe")
    assert "% dense becomes sparse" in path["headline"] and (tmp_path / path["report"]).exists()
    assert study["headline"].startswith("MNIST kept: ") and set(study["numbers"]) == {"plain", "ewc", "laplace", "l2sp", "joint"}
    assert "Seed 0: MNIST kept" in done.stderr  # progress and verdict
    run = tmp_path / study["run"]
    assert (run / "report.html").exists() and (tmp_path / "runs" / "index.html").exists()

    listed = retain_command("list", "runs", cwd=tmp_path)
    assert run.name in listed.stdout and "MNIST kept" in listed.stdout
    (run / "report.html").unlink()
    again = retain_command("report", run.name, cwd=tmp_path)
    assert again.returncode == 0 and (run / "report.html").exists()
    other = retain_command("run", "forgetting", *TINY, "--seeds", "1", "--set", "lr=0.05", "--out", "runs", cwd=tmp_path)
    assert other.returncode == 0 and "Report:" in other.stdout and "MNIST kept" in other.stdout
    both = sorted(path.name for path in run.parent.iterdir())
    compared = retain_command("compare", *both, cwd=tmp_path)
    assert "lr" in compared.stdout and "ewc, mnist %" in compared.stdout
    cited = retain_command("cite", run.name, cwd=tmp_path)
    assert "@article{kirkpatrick2017overcoming" in cited.stdout and "@software{retain" in cited.stdout
    resumed = retain_command("run", "forgetting", "--resume", str(run), "--json", cwd=tmp_path)
    assert resumed.returncode == 0 and json.loads(resumed.stdout)["run"] == str(run)
    by_hash = retain_command("run", "forgetting", "--resume", run.name[:6], "--json", cwd=tmp_path)
    assert by_hash.returncode == 0 and json.loads(by_hash.stdout)["run"].endswith(run.name)
    (tmp_path / "runs" / "index.html").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "index.html").write_text("somebody's")
    far = retain_command("run", "forgetting", "--resume", str(run), cwd=tmp_path / "elsewhere")
    assert far.returncode == 0 and f"Index:   {tmp_path / 'runs' / 'index.html'}" in far.stdout
    assert (tmp_path / "runs" / "index.html").exists() and not list((tmp_path / "elsewhere").iterdir())
    assert retain_command("report", str(run), cwd=tmp_path / "elsewhere").returncode == 0
    assert (tmp_path / "index.html").read_text() == "somebody's"


def test_dry_run_writes_nothing(tmp_path):
    done = retain_command("run", "forgetting", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("lr = 0.1", "269,322 parameters", "one batch: inputs [64, 1, 28, 28]", "stages", "about"):
        assert words in done.stdout
    assert not list(tmp_path.iterdir())
    answer = json.loads(retain_command("run", "forgetting", "--dry-run", "--json", "--seeds", "2", cwd=tmp_path).stdout)
    assert answer["settings"]["seeds"] == 2 and answer["expected_seconds"] > 0


def test_listings():
    assert "elastic weight consolidation" in retain_command("list", "methods").stdout
    assert "forgetting" in retain_command("list", "studies").stdout
    rows = json.loads(retain_command("list", "tasks", "--json").stdout)
    assert {"mnist", "fashion_mnist", "digits"} <= {row["name"] for row in rows}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file is in the way")
    done = retain_command("run", "forgetting", *TINY, "--out", "runs", cwd=tmp_path)
    assert done.returncode != 0 and "could not be written" in done.stderr and "Traceback" not in done.stderr


def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    """A limit on file sizes makes the checkpoint's write fail; afterwards the run goes on from what was kept."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
        "from retain.cli import main\nmain()"
    )
    words = ["run", "forgetting", *TINY, "--seeds", "1", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RETAIN_CHECKPOINT_SECONDS": "0"}
    full = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=env, timeout=300, check=False)
    assert full.returncode == 1 and "could not be written" in full.stderr and "Traceback" not in full.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    resumed = retain_command(*words, "--resume")
    assert resumed.returncode == 0, resumed.stderr


def test_resume_takes_a_path(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    assert _with_path_after_resume(["run", "x", "--resume", str(tmp_path)]) == ["run", "x", "--resume", "--at", str(tmp_path)]
    assert _with_path_after_resume(["run", "--resume", "forgetting"]) == ["run", "--resume", "forgetting"]
    assert _with_path_after_resume(["run", "x", "--resume", "0a1b"]) == ["run", "x", "--resume", "--at", "0a1b"]
    assert _with_path_after_resume(["run", "x", "--resume"]) == ["run", "x", "--resume"]
