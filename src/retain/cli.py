"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain import __version__
from retain.errors import InputError, RetainError

if TYPE_CHECKING:
    from retain.runs import Run
    from retain.studies.base import Spec, Study

app = typer.Typer(
    name="retain",
    help="Carry what a model has learned to the next task, and measure what it kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Out = Annotated[Path, typer.Option("--out", help="Folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
_RUNS = Path("runs")


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study, or 'all'; see 'retain list studies'.")],
    preset: Annotated[str | None, typer.Option(help="quick, paper or another of the study's presets (its page names them); quick by default.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions: seeds 0 to N-1.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start from the first-task model of a run, or of a folder that retain.save wrote.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the raw data files, default RETAIN_DATA; or with photographs.")] = None,
    out: Out = _RUNS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; '--resume RUN' names its folder or hash.")] = False,
    at: Annotated[Path | None, typer.Option(hidden=True)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove the run's results and start anew.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --resume: go on under another torch version, without equal bits.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print settings, size and expected time; run one batch, write nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of this machine, each with one thread unless --set threads=N says otherwise.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Do the pieces on a cluster: ray or slurm.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --cluster ray: where it is, or auto; a Ray of this machine by default.")
    ] = None,
    slurm: Annotated[list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="With --cluster slurm: partition, timeout and others.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study and write its report."""
    from retain.studies import find, names

    if resume and fresh:
        raise InputError("--fresh", "either --fresh, which removes what is there, or --resume", "both")
    if at is not None and len(at.parts) == 1 and not at.exists():
        from retain.runs import find_run

        at = find_run(str(at), out).path
    chosen = names() if study == "all" else [study]
    found = [find(name) for name in chosen]
    settings = list(set_ or [])
    if seeds is not None:
        settings.append(f"seeds={seeds}")
    if data is not None:
        settings.append(f"data={json.dumps(str(data.resolve()))}")
    if from_ is not None:
        settings.append(f"start={json.dumps(_start(from_, out))}")
    if jobs > 1 and (at is None or preset is not None) and not any(text.partition("=")[0] == "threads" for text in settings):
        settings.append("threads=1")  # processes that share the processors' cores are in each other's way with more
    where = {"jobs": jobs, "cluster": cluster, "address": address, "slurm": _pairs(slurm or [])}
    if study == "all":
        _known_somewhere(settings, found)
    specs: list[tuple[Study, Spec]] = []  # all of them before anything is run
    for one in found:
        mine = settings if study != "all" else [text for text in settings if text.partition("=")[0] in one.spec_type.model_fields]
        if at is not None and preset is None:
            specs.append((one, _stored_spec(one, at).changed(mine)))
        else:
            specs.append((one, one.spec(preset or "quick", mine)))
    answers = []
    for one, spec in specs:
        if dry_run:
            answers.append(_plan(one, spec, quiet=as_json))
        else:
            answers.append(_execute(one, spec, out, at=at, resume=resume, fresh=fresh, force=force, quiet=as_json, **where))
    if not dry_run:
        for index in _write_indexes([Path(answer["run"]) for answer in answers], out):
            if not as_json:
                typer.echo(f"Index:   {index}")
    if as_json:
        typer.echo(json.dumps(answers[0] if study != "all" else {"schema": 1, "studies": answers}))


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="studies, methods, tasks or runs.")],
    out: Out = _RUNS,
    as_json: AsJson = False,
) -> None:
    """List studies, methods, tasks or runs."""
    from retain.errors import nearest

    kinds: dict[str, Callable[[], list[tuple[str, str]]]] = {"studies": _studies, "methods": _methods, "tasks": _tasks, "runs": lambda: _runs(out)}
    if what not in kinds:
        raise InputError("what", "something to list", repr(what), nearest(what, kinds))
    rows = kinds[what]()
    if as_json:
        typer.echo(json.dumps([{"name": name, "summary": text} for name, text in rows]))
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        typer.echo(f"{name.ljust(width)}  {text}")
    if not rows:
        typer.echo(f"No {what} under {out}." if what == "runs" else f"No {what}.", err=True)


@app.command("compare")
def compare_(runs: Annotated[list[str], typer.Argument(help="Runs: folders or starts of hashes.")], out: Out = _RUNS, as_json: AsJson = False) -> None:
    """Put runs of one study side by side."""
    from retain.report import compare
    from retain.runs import find_run

    tables = compare([find_run(reference, out) for reference in runs])
    if as_json:
        typer.echo(json.dumps([{"title": table.title, "columns": table.columns, "rows": table.rows} for table in tables]))
        return
    typer.echo("\n\n".join(table.text() for table in tables))


@app.command()
def report(runs: Annotated[list[str], typer.Argument(help="Runs: folders, starts of hashes, or a study for its newest.")], out: Out = _RUNS) -> None:
    """Write the pages of runs again, of unfinished ones from the seeds that are there."""
    from retain.report import write_report
    from retain.runs import find_run

    found = [find_run(reference, out) for reference in runs]
    for run in found:
        typer.echo(write_report(run))
    for index in _write_indexes([run.path for run in found], out):
        typer.echo(index)


@app.command()
def cite(run: Annotated[str, typer.Argument(help="A run: folder, start of hash, or study.")], out: Out = _RUNS) -> None:
    """Print BibTeX for what a run used."""
    from retain.report import bibliography
    from retain.runs import find_run
    from retain.studies import find

    typer.echo(bibliography(find(find_run(run, out).spec()["study"]).citations))


@app.command()
def view(out: Out = _RUNS) -> None:
    """Open the index of all runs in the browser."""
    page = out / "index.html"
    if not page.exists():
        raise InputError("--out", f"a folder with an index.html, {page}", "none", "Run a study first: retain run forgetting.")
    typer.echo(page)
    typer.launch(page.resolve().as_uri())


@app.callback(invoke_without_command=True)
def version_(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Carry what a model has learned to the next task, and measure what it kept."""
    if version:
        typer.echo(f"retain {__version__}")
        raise typer.Exit


def _known_somewhere(settings: list[str], studies: list[Study]) -> None:
    """Of ``run all``: a setting goes to the studies that have it, and one that none has is a mistake."""
    from retain.errors import nearest

    fields = {key for study in studies for key in study.spec_type.model_fields}
    for text in settings:
        key = text.partition("=")[0]
        if key not in fields:
            raise InputError("--set", "a setting of some study", repr(key), nearest(key, fields))


def _pairs(settings: list[str]) -> dict[str, str]:
    """``key=value`` texts of ``--slurm``."""
    for text in settings:
        if "=" not in text:
            raise InputError("--slurm", "key=value", repr(text))
    return dict(text.split("=", 1) for text in settings)


def _start(reference: str, out: Path) -> str:
    from retain.runs import find_run

    path = Path(reference)
    return str(path.resolve() if (path / "model.safetensors").exists() else find_run(reference, out).path.resolve())


def _stored_spec(study: Study, at: Path) -> Spec:
    from retain.runs import Run

    stored = Run(at).spec()
    if stored["study"] != study.name:
        raise InputError("--resume", f"a run of '{study.name}'", f"one of '{stored['study']}' in {at}")
    return study.spec_type.parse(stored["settings"])


def _plan(study: Study, spec: Spec, *, quiet: bool) -> dict[str, Any]:
    plan = study.plan(spec)
    total = plan.seconds * spec.seeds + plan.search_seconds
    answer = {
        "schema": 1,
        "study": study.name,
        "hash": spec.fingerprint(study),
        "settings": spec.model_dump(mode="json"),
        "expected_seconds": round(total),
        **vars(plan),
    }
    if not quiet:
        typer.echo(f"{study.name} {answer['hash']}: {study.question}\n")
        for key, value in spec.model_dump(mode="json").items():
            typer.echo(f"  {key} = {value}")
        typer.echo(f"\n{plan.parameters:,} parameters; training images: {', '.join(f'{k} {v:,}' for k, v in plan.samples.items())}")
        typer.echo(f"one batch: {plan.batch}")
        typer.echo(f"{spec.seeds} seeds x {len(plan.stages)} stages, {plan.steps * spec.seeds:,} steps, about {_duration(total)}")
        if plan.search_steps:
            typer.echo(f"of that time the search takes about {_duration(plan.search_seconds)}, for another {plan.search_steps:,} steps")
        typer.echo(f"stages: {', '.join(plan.stages)}")
    return answer


def _execute(study: Study, spec: Spec, out: Path, *, quiet: bool, **options: Any) -> dict[str, Any]:
    from retain.report import write_report
    from retain.report.live import Display
    from retain.runs import Run, execute
    from retain.runs.grid import PieceError

    path = options["at"] or out / study.name / spec.fingerprint(study)
    done = 0 if options["fresh"] else sum(seed < spec.seeds for seed in Run(path).seeds())
    typer.echo(f"Run:     {path}", err=True)
    try:
        together = options["jobs"] > 1 or options["cluster"] is not None
        with Display(study.title, study.stages(spec), spec.seeds, done, together=together) as display:
            finished: Run = execute(study, spec, out, listener=display, **options)
    except KeyboardInterrupt:
        again = f"retain run {study.name} --resume {path}{_where(options)}"
        typer.echo(f"\nInterrupted. Everything up to the last checkpoint is kept; go on with:\n  {again}", err=True)
        raise typer.Exit(130) from None
    except PieceError:
        with contextlib.suppress(RetainError):  # nothing is finished
            typer.echo(f"Report of what is finished: {write_report(Run(path))}", err=True)
        raise
    summary = finished.read("summary.json")
    page = write_report(finished)
    if not quiet:
        typer.echo("\n".join(f"\n{text}" for text in summary["tables"]))
        for note in summary["notes"]:
            typer.echo(f"Note: {note}")
        typer.echo(f"\n{summary['headline']}")
        typer.echo(f"Report:  {page}")
    return {"schema": 1, "study": study.name, "run": str(path), "report": str(page), **{key: summary[key] for key in ("headline", "numbers", "notes")}}


def _write_indexes(runs: list[Path], out: Path) -> list[Path]:
    """Of ``--out``, and of folders that have one of these runs as ``STUDY/HASH``; an ``index.html`` further up is somebody else's."""
    from retain.report import write_index
    from retain.studies import names

    mine, known = out.resolve(), names()
    homes = {home for run in map(Path.resolve, runs) for i, home in enumerate(run.parents) if home == mine or (i == 1 and run.parent.name in known)}
    return [write_index(out if home == mine else home) for home in sorted(homes)]


def _where(options: dict[str, Any]) -> str:
    """The words that say where pieces are done."""
    words = ["", "--jobs", str(options["jobs"])] if options["jobs"] > 1 else [""]
    for key in ("cluster", "address"):
        words += [f"--{key}", options[key]] if options[key] else []
    words += [word for key, value in options["slurm"].items() for word in ("--slurm", f"{key}={value}")]
    return " ".join(words)


def _studies() -> list[tuple[str, str]]:
    from retain.studies import SUMMARIES

    return list(SUMMARIES.items())


def _methods() -> list[tuple[str, str]]:
    from retain.methods import METHODS

    return [(name, method.summary) for name, method in METHODS.items()]


def _tasks() -> list[tuple[str, str]]:
    from retain.tasks import SOURCES

    return [(name, (source.__doc__ or "").splitlines()[0]) for name, source in SOURCES.items()]


def _runs(out: Path) -> list[tuple[str, str]]:
    from retain.runs import list_runs

    rows = []
    for found in list_runs(out):
        name = f"{found.path.parent.name}/{found.path.name}"
        try:
            settings = found.spec()["settings"]
            said = found.read("summary.json")["headline"] if (found.path / "summary.json").exists() else "unfinished"
            rows.append((name, f"{settings['preset']}, {len(found.seeds())} of {settings['seeds']} seeds: {said}"))
        except (InputError, KeyError, TypeError) as error:  # one damaged run hides no other
            rows.append((name, f"cannot be read: {error}"))
    return rows


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _with_path_after_resume(words: list[str]) -> list[str]:
    """``--resume RUN`` as ``--resume --at RUN``, where RUN is a run's folder, or the start of its hash."""
    if "--resume" in words[:-1]:
        place = words.index("--resume") + 1
        if (Path(words[place]) / "spec.json").exists() or "/" in words[place] or re.fullmatch("[0-9a-f]{4,8}", words[place]):
            return [*words[:place], "--at", *words[place:]]
    return words


def main() -> None:
    """The entry point: a user's mistake ends with one message and status 2, another failure with 1."""
    try:
        app(_with_path_after_resume(sys.argv[1:]), prog_name="retain")
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    except RetainError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except (OSError, MemoryError) as error:
        typer.echo(f"Error: {error or 'out of memory'}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
