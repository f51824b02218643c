"""One notebook, run by papermill: in the right kernel and folder, with failures named."""

import os
import sys
from pathlib import Path

import nbformat

from decorlib.study.report.notebooks import Source


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message names it, the cell and the error."""


def execute(source: Source, target: Path, values: dict, timeout: int | None, env: dict[str, str]) -> None:
    """Run one notebook with papermill into `target`; on failure `target` holds what there was until then.

    Raises:
        NotebookFailed: a cell raised, the kernel died, a cell took longer than `timeout` seconds, or a cell ended the
            notebook: papermill takes ``sys.exit(0)`` for a success and leaves out what comes after it.
    """
    import papermill
    from traitlets.config import Config

    target.parent.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)  # the kernel inherits it
    try:
        executed = papermill.execute_notebook(
            str(source.path),
            str(target),
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=str(source.path.parent),
            progress_bar=sys.stderr.isatty(),
            execution_timeout=timeout,
            start_timeout=120,
            coalesce_streams=True,
            # ipykernel warns of its local TCP ports at every start unless it may encrypt them
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except papermill.PapermillExecutionError as error:
        where = _cell(source, error.source)
        raise NotebookFailed(f"{source.path.name} failed in {where}: {error.ename}: {error.evalue}") from error
    except Exception as error:  # dead kernel, time-out, no such kernel: papermill leaves no mark of these
        where = _cell(source, _running(target))
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if isinstance(error, OSError):
            reason += f"; free space or make {target.parent} writable, and call again"
        raise NotebookFailed(f"{source.path.name} failed in {where}: {reason}") from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    _check_whole(source, executed)


def _check_whole(source: Source, executed: nbformat.NotebookNode) -> None:
    cells = [cell for cell in executed.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                where = _cell(source, cell.source)
                raise NotebookFailed(f"{source.path.name} ended in {where}: {output.ename}: {output.evalue}")
    for cell in cells:
        if cell.execution_count is None:
            raise NotebookFailed(f"{source.path.name} ended before {_cell(source, cell.source)}, which was not run")


def _running(path: Path) -> str | None:
    """Text of the cell that was running when papermill last saved the notebook."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception:
        return None
    begun = [c.source for c in cells if c.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def _cell(source: Source, text: str | None) -> str:
    """Position of a cell in the source (papermill's own count includes the cell it injects) and its first line."""
    if text is None:
        return "no cell: it did not start"
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    first = f"`{lines[0].strip()}`" if lines else "`...`"
    for index, cell in enumerate(source.read().cells, 1):
        if cell.source == text:
            return f"cell {index} ({first})"
    return f"the injected parameters ({first})"
