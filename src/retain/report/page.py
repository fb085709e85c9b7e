"""HTML pages: one a run, and the index."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from retain import __version__
from retain.errors import InputError
from retain.figures import svg
from retain.report.cite import bibliography
from retain.runs.execute import summarise
from retain.runs.folder import Run, list_runs
from retain.runs.grid import Gathered, Grid
from retain.runs.trials import settle
from retain.studies import SUMMARIES, find, names
from retain.training.checkpoints import write_file


def _template(name: str) -> Any:
    pages = Environment(loader=PackageLoader("retain.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters["words"] = lambda value: ", ".join(map(str, value)) if isinstance(value, list) else value
    return pages.get_template(name)


def write_report(run: Run) -> Path:
    """Write a run's page, ``report.html``, its figures as SVG files under ``figures/``, and its tables as ``tables.md`` and ``tables.tex``.

    Args:
        run: A run with at least one finished seed, or cell of one; the page of an unfinished run says how much of it is there.

    Returns:
        The page.

    Raises:
        InputError: If nothing of it has finished.
    """
    stored = run.spec()
    study = find(stored["study"])
    spec = study.spec_type.parse(stored["settings"])
    whole = settle(study, spec, run)
    if whole is None and not run.seeds():  # cells of other runs may fit by chance: they are not this run's
        raise InputError("run", "a run whose search is finished", f"an unfinished search in {run.path}", "Go on with it: retain run ... --resume.")
    gathered = Grid(study, whole, run).gather() if whole is not None else Gathered(run.results(), len(run.seeds()), spec.seeds, "seeds")
    if not gathered.results:
        raise InputError("run", "at least one finished seed, or cell of one", f"none in {run.path}", "Go on with it: retain run ... --resume.")
    outcome = summarise(study, spec, run, gathered)
    drawn = [(figure, svg(figure)) for figure in outcome.figures]
    for figure, text in drawn:
        write_file(run.path / "figures" / f"{figure.id}.svg", text.encode())
    write_file(run.path / "tables.md", "\n\n".join(table.markdown() for table in outcome.tables).encode() + b"\n")
    write_file(run.path / "tables.tex", "\n\n".join(table.latex() for table in outcome.tables).encode() + b"\n")
    fields = type(spec).model_fields
    settings = [(key, value, fields[key].description or "") for key, value in spec.model_dump(mode="json").items()]
    page = _template("report.html").render(
        study=study,
        outcome=outcome,
        drawn=drawn,
        settings=settings,
        environment=run.read("env.json"),
        seeds=run.seeds(),
        hash=run.path.name,
        bibtex=bibliography(study.citations),
        command=command(study.name, stored["settings"]),
        version=__version__,
    )
    write_file(run.path / "report.html", page.encode())
    return run.path / "report.html"


def command(study: str, settings: dict[str, Any]) -> str:
    """The command line that makes a run with these settings."""
    preset = settings["preset"]
    base = find(study).spec(preset).model_dump(mode="json")
    changes = {key: value for key, value in settings.items() if base.get(key) != value}
    words = ["retain", "run", study, "--preset", preset]
    for key, flag in (("seeds", "--seeds"), ("data", "--data"), ("start", "--from")):
        if key in changes:
            words += [flag, str(changes.pop(key))]
    for key, value in changes.items():
        words += ["--set", f"{key}={json.dumps(value, separators=(',', ':'))}"]
    return shlex.join(words)


def _whole(run: Run) -> bool:
    """Whether a run's files can be read; one damaged run is to hide no other."""
    try:
        return "preset" in run.spec()["settings"] and "headline" in run.read("summary.json")
    except (InputError, KeyError, TypeError):
        return False


def write_index(out: Path) -> Path:
    """Write ``OUT/index.html``: for every study its question, the newest run's answer and picture, and links to all its runs.

    Args:
        out: The folder of runs.

    Returns:
        The page.
    """
    studies = []
    runs = list(list_runs(out))
    for name in names():
        mine = [run for run in runs if run.path.parent.name == name and (run.path / "report.html").exists() and _whole(run)]
        entries = [
            {
                "run": run,
                "summary": run.read("summary.json"),
                "preset": run.spec()["settings"]["preset"],
                "seeds": len(run.seeds()),
                "link": run.path.relative_to(out).as_posix(),
            }
            for run in reversed(mine)
        ]
        study = find(name)
        picture = ""
        if entries:
            first = mine[-1].path / "figures" / f"{entries[0]['summary']['picture']}.svg"
            picture = first.read_text() if first.exists() else ""
        studies.append({"study": study, "summary": SUMMARIES[name], "entries": entries, "picture": picture})
    write_file(out / "index.html", _template("index.html").render(studies=studies, version=__version__).encode())
    return out / "index.html"
