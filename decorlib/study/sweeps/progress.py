"""One progress bar for notebooks, terminals and batch runs."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T], total: int | None = None, desc: str = "") -> Iterator[T]:
    """Iterate with a progress bar that suits where it is shown.

    In JupyterLab it is a widget, in a terminal a line. Under ``make reproduce`` (``DECORLIB_BATCH=1``) it is
    a line on the terminal that runs the notebooks: a widget would leave an empty box in the report. With
    ``DECORLIB_PROGRESS=off`` there is none; the checks of stored outputs use that, because a bar's text
    holds the time.

    Args:
        iterable: what to iterate over.
        total: number of items, where ``len(iterable)`` does not tell. Default: ``None``
        desc: short text before the bar. Default: ``""``
    """
    if os.environ.get("DECORLIB_PROGRESS", "on") == "off":
        yield from iterable
    elif os.environ.get("DECORLIB_BATCH") == "1":
        from tqdm import tqdm

        # sys.__stderr__ of a kernel is the terminal; sys.stderr would be stored in the notebook.
        yield from tqdm(iterable, total=total, desc=desc, file=sys.__stderr__, mininterval=1.0, leave=False)
    else:
        from tqdm.auto import tqdm

        yield from tqdm(iterable, total=total, desc=desc)
