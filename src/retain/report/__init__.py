"""What people read: the page of a run, the index of all runs, comparisons, citations, and the live display."""

from retain.report.cite import bibliography
from retain.report.compare import compare
from retain.report.page import write_index, write_report

__all__ = ["bibliography", "compare", "write_index", "write_report"]
