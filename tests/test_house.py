"""The shape of the house: layers, sizes, docs and settings that belong together."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import retain
from retain.methods import METHODS
from retain.paths import BRIDGES, SCHEDULES, STRATEGIES
from retain.studies import SUMMARIES, find, names

ROOT = Path(retain.__file__).parents[2]
SOURCE = Path(retain.__file__).parent
# ground floor first; a file imports from its own folder or from below
LAYERS = [
    "errors",
    "seeds",
    "likelihoods",
    "figures",
    "tasks",
    "models",
    "metrics",
    "beliefs",
    "curvature",
    "methods",
    "training",
    "paths",
    "plasticity",
    "recipes",
    "diagnosis",
    "merging",
    "studies",
    "runs",
    "report",
    "cli",
]
FILES = sorted(SOURCE.rglob("*.py"))


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_import_from_below(path):
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if here in ("__init__",):
        return
    assert here in LAYERS
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "retain":
            modules = [f"retain.{alias.name}" for alias in node.names] if node.module == "retain" else [node.module]
        for module in modules:
            other = layer(module)
            if other.startswith("__"):
                continue  # the version
            assert other in LAYERS, module
            assert LAYERS.index(other) <= LAYERS.index(here), f"{path.name} imports {module} from above"


def test_no_circles():
    for name in LAYERS:
        done = subprocess.run([sys.executable, "-c", f"import retain.{name}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_public_names_load_and_are_listed():
    assert set(retain.__all__) <= set(dir(retain))
    assert all(getattr(retain, name) is not None for name in retain.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = retain.nonsense


def test_import_is_quick():
    done = subprocess.run([sys.executable, "-c", "import retain, sys; print('torch' in sys.modules)"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_method_has_its_page_and_its_key():
    for name, method in METHODS.items():
        if name == "plain":
            continue
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert method.__name__ in page and method.citation in page
        assert method.__name__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_strategy_is_on_the_page_of_paths():
    page, log, keys = ((ROOT / name).read_text() for name in ("docs/paths.md", "CHANGELOG.md", "src/retain/report/references.bib"))
    for strategy in STRATEGIES.values():
        assert strategy.__name__ in page and f"`{strategy.__name__}`" in log and f"{{{strategy.citation}," in keys
    for name in (*BRIDGES, *SCHEDULES):
        assert f"`{name}`" in page


def test_every_study_has_its_page_question_and_row():
    readme = (ROOT / "README.md").read_text()
    for name in names():
        study = find(name)
        assert name in SUMMARIES and study.question.endswith("?") and {"quick", "paper"} <= set(study.presets)
        assert (ROOT / "docs" / "studies" / f"{name}.md").exists() and f"retain run {name}" in readme
        for preset in study.presets:
            spec = study.spec(preset)
            assert study.spec_type.parse(spec.model_dump(mode="json")) == spec
        undocumented = [key for key, field in study.spec_type.model_fields.items() if not field.description]
        assert not undocumented


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_python_on_every_page_runs(path, tmp_path, monkeypatch):
    """Blocks of a page run in order in one namespace, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks(path):
        exec(compile(block, str(path), "exec"), space)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not link.startswith(("http:", "https:")):
            assert (path.parent / link).exists(), link


def test_commands_on_every_page_exist():
    from typer.main import get_command

    from retain.cli import app

    known = set(get_command(app).commands)
    for path in PAGES:
        for command in re.findall(r"^\s*(?:\$ )?retain (\S+)", path.read_text(), re.M):
            assert command in known or command.startswith("-"), f"{path.name}: retain {command}"
        makefile = (ROOT / "Makefile").read_text()
        for target in re.findall(r"`make ([a-z]+)`", path.read_text()):
            assert f"\n{target}:" in makefile


def test_tutorials_are_those_of_their_scripts():
    import jupytext
    import nbformat

    for script in (ROOT / "docs" / "tutorials").glob("*.py"):
        made, kept = jupytext.read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
        assert [cell.source for cell in made.cells] == [cell.source for cell in kept.cells], f"run 'make notebooks' for {script.name}"
        assert any("image/png" in output.get("data", {}) for cell in kept.cells for output in cell.get("outputs", []))


def test_tutorials_run():
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tutorial.py"), "--check"], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
