"""The long description for an index of packages: README.md with links that lead somewhere from there.

All else is in pyproject.toml. README's links lead to files beside it. With an address of the project in pyproject.toml
(``[project.urls]``, ``Source = "..."``) they lead to the files there; without one, as now, they become what they say,
followed by the name of the file, which is in the source distribution.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def long_description(readme: str, source: str | None) -> str:
    """README's text with the links to files made absolute, or plain where there is no address to make them so."""

    def absolute(link: re.Match) -> str:
        text, target = link["text"], link["target"]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        if source:
            return f"[{text}]({source.rstrip('/')}/blob/main/{target})"
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    return re.sub(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", absolute, readme)


if __name__ == "__main__":
    urls = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    setup(
        long_description=long_description((HERE / "README.md").read_text(encoding="utf-8"), urls.get("Source")),
        long_description_content_type="text/markdown",
    )
