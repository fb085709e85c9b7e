"""Turn the tutorials' scripts into executed notebooks.

    python scripts/make_tutorial.py           write docs/tutorials/NAME.ipynb, with outputs
    python scripts/make_tutorial.py --check   only execute; exit code 1 if a cell fails

Every ``docs/tutorials/*.py`` (jupytext, percent format) is converted, executed from beginning to end in a fresh kernel, and written
beside its script. A notebook is written only if all of its cells have run. What changes from run to run without meaning (times,
versions, random cell ids) is left out.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
SECONDS = 600  # for one cell


def execute(notebook: NotebookNode) -> str:
    """Run all cells; return what went wrong, or nothing."""
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    try:
        client.execute()
    except CellExecutionError as error:
        numbered = [(i, output) for i, cell in enumerate(notebook.cells, 1) for output in cell.get("outputs", [])]
        number, failure = next((i, output) for i, output in numbered if output.output_type == "error")
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(failure.traceback))
        return f"cell {number} raised {error.ename}: {error.evalue}\n{trace}"
    except CellTimeoutError:
        return f"a cell took longer than {SECONDS} s"
    except DeadKernelError as error:
        return f"the kernel died: {error}"
    return ""


def strip(notebook: NotebookNode) -> NotebookNode:
    """Leave out what differs between runs that mean the same, and join pieces of one stream."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        joined: list[NotebookNode] = []
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if output.output_type == "stream" and joined and joined[-1].output_type == "stream" and joined[-1].name == output.name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        cell.outputs = joined
    return notebook


def main() -> int:
    """Make or check every tutorial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="execute only, write nothing")
    check = parser.parse_args().check
    scripts = sorted(FOLDER.glob("*.py"))
    if not scripts:
        print(f"No tutorial in {FOLDER}.", file=sys.stderr)
        return 1
    failed = []
    for script in scripts:
        notebook = jupytext.read(script)
        begin = time.perf_counter()
        problem = execute(notebook)
        seconds = time.perf_counter() - begin
        if problem:
            failed.append(script.name)
            print(f"{script.name}: FAILED after {seconds:.0f} s: {problem}", file=sys.stderr)
            continue
        print(f"{script.name}: {len(notebook.cells)} cells ran in {seconds:.0f} s")
        if not check:
            target = script.with_suffix(".ipynb")
            nbformat.write(strip(notebook), target)
            print(f"  wrote {target.name}, {target.stat().st_size / 1e6:.2f} MB")
    if failed:
        print(f"{len(failed)} of {len(scripts)} tutorials failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
