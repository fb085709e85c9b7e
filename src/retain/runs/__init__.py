"""Run folders: files are the truth. Executing studies, going on after a kill, comparing."""

from retain.runs.execute import execute
from retain.runs.folder import Run, find_run, list_runs

__all__ = ["Run", "execute", "find_run", "list_runs"]
