"""The API pages: one of the names for users, a line and then the details of each, and one for every module."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from decorlib.study.report import pages
from decorlib.study.report.pages import PACKAGE, toctree

# Where the names for users come from, by room, in the order of the page.
SECTIONS = {
    "layers": "Layers, and functions over the layers of a model",
    "conversion": "From a plain model and back",
    "optim": "Optimizers of R",
    "training": "Training and checkpoints",
    "rules": "Learning rules",
}
STUDY = "For studies: `decorlib.study`"
_ROLE = re.compile(r":(?:py:)?[a-z]+:`(?:[^`<]*<)?(~?)([^`>]*)>?`")


def write(target: Path) -> None:
    """Write the pages and the two lists that docs/api.md and docs/internals.md include."""
    found = {full: value for names in sections(*facades()).values() for full, value in names}
    api, generated = target / "api", target / "_generated"
    api.mkdir(exist_ok=True)
    for module in pages.modules():
        (api / f"{module}.md").write_text(module_page(module, found), encoding="utf-8")
    generated.mkdir(exist_ok=True)
    (generated / "internals.md").write_text(module_listing(pages.modules()), encoding="utf-8")
    (generated / "api.md").write_text(public(), encoding="utf-8")


def facades() -> list:
    """The two modules that hand names on to users, and to nobody inside."""
    return [import_module(name) for name in ("decorlib", "decorlib.study")]


def module_page(module: str, public: dict[str, object]) -> str:
    """A module with what it has beside its public names, which are on the page of those."""
    full = [name for name, value in public.items() if getattr(value, "__module__", None) == module]
    there = vars(sys.modules[module]) if module in sys.modules else {}
    shown = sorted(
        name for name, value in ((full.rpartition(".")[2], v) for full, v in public.items()) if there.get(name) is value
    )
    links = ", ".join(f"{{py:obj}}`{name.rpartition('.')[2]} <{name}>`" for name in full)
    public_names = f"Of this module, {links} are for users, and on the page [API](../api.md).\n\n" if full else ""
    excluded = f"   :exclude-members: {', '.join(shown)}\n" if shown else ""
    return f"# {module}\n\n{public_names}```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n{excluded}```\n"


def public() -> str:
    """The names of ``decorlib`` and ``decorlib.study``: a line each, then the details of each."""
    listed, detailed = [], []
    for title, names in sections(*facades()).items():
        listed.append(f"**{title}**\n")
        for full, value in names:
            listed.append(f"* {{py:obj}}`{full.rpartition('.')[2]} <{full}>`: {first_line(full, value)}")
        listed.append("")
        detailed.append(f"## {title}\n\n```{{eval-rst}}")
        detailed += [directive(full, value) for full, value in names]
        detailed.append("```\n")
    return "\n".join([*listed, *detailed])


def sections(library, study) -> dict[str, list[tuple[str, object]]]:
    """Title -> (public name in full, what it is), in the order of the page.

    Raises:
        KeyError: a name from a room that :data:`SECTIONS` does not know.
    """
    found: dict[str, list[tuple[str, object]]] = {title: [] for title in SECTIONS.values()}
    for name in sorted(library.__all__, key=lambda name: (name[0].islower(), name.lower())):
        value = getattr(library, name)
        module = getattr(value, "__module__", "decorlib.rules")  # RULES, a dict
        found[SECTIONS[module.split(".")[1]]].append((f"decorlib.{name}", value))
    found[STUDY] = [(f"decorlib.study.{name}", getattr(study, name)) for name in study.__all__]
    return {title: names for title, names in found.items() if names}


def first_line(full: str, value: object) -> str:
    """The first sentence of a docstring in Markdown; for a second name of something, whose it is."""
    own = getattr(value, "__name__", full.rpartition(".")[2])
    if own != full.rpartition(".")[2]:
        return f"another name for `{own}`"
    if isinstance(value, dict):
        return "what a rule is called, and its class"
    text = inspect.getdoc(value) or ""
    return as_markdown(text.split("\n\n")[0].replace("\n", " "))


def as_markdown(text: str) -> str:
    """A line of a docstring without roles: they become code with the last part, or all, of what they name."""

    def name(match: re.Match) -> str:
        short, target = match.groups()
        return f"`{target.rpartition('.')[2] if short else target}`"

    return re.sub(r"``([^`]*)``", r"`\1`", _ROLE.sub(name, text))


def directive(full: str, value: object) -> str:
    """What shows one public name in full."""
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        return f".. auto{kind}:: {full}\n   :members:\n"
    if callable(value):
        return f".. autofunction:: {full}\n"
    pairs = "\n".join(f"   * ``{key!r}``: :class:`decorlib.{one.__name__}`" for key, one in value.items())
    return f".. py:data:: {full}\n   :type: dict[str, type[Rule]]\n\n{pairs}\n"


def module_listing(names: Iterable[str]) -> str:
    """The modules with the first line of their docstrings, and the toctree that makes them pages."""
    lines = []
    for name in names:
        path = PACKAGE.parent / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"* [{name}](api/{name}.md): {as_markdown(text.partition(chr(10))[0])}")
    return "\n".join(lines) + "\n\n" + toctree([f"/api/{name}" for name in names], "")
