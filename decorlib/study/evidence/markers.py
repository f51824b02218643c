"""Text that a program keeps up to date in a page that people write: it stands between two comments with its name."""

import re


def between(text: str, name: str, made: str, where: str = "the page", by: str = "") -> str:
    """The text with what stands between ``<!-- name: ... -->`` and ``<!-- /name -->`` replaced.

    Args:
        text: of the page.
        name: of the two comments.
        made: what stands there from now on.
        where: the page, for the error. Default: "the page".
        by: what the first comment says after the name. Default: "", what it has said.

    Raises:
        ValueError: the page has no such comments.
    """
    marks = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.S)
    if not marks.search(text):
        raise ValueError(f"{where} has no lines `<!-- {name}: ... -->` and `<!-- /{name} -->` to write between")
    return marks.sub(lambda found: (f"<!-- {name}: {by} -->\n" if by else found[1]) + made + found[2], text)
