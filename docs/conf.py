"""The report's frame. `make report` copies this folder to build/ and adds what is generated."""

import os
import re
import sys
import xml.etree.ElementTree as ET
from importlib import import_module

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

_CLONE = os.environ["DECORLIB_CLONE"]  # set by decorlib.study.report.build
_TO_CLONE = os.environ["DECORLIB_TO_CLONE"]  # the way there from a page one folder deep

project = "decorlib"
author = "The decorlib authors"
project_copyright = "The decorlib authors, MIT licence"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"]
exclude_patterns = ["_generated", "_build"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # text/plain beside an image is for terminals

# Notebooks: executed by papermill already; nothing that needs a script from elsewhere.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
# A role that names one of ours and leads nowhere is an error; torch's pages are not within reach.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!decorlib\b).*"),
    (r"py:mod", r".*"),
    (r"py:class", r"decorlib\.study\.(report|sweeps)\.\w+\.\w+"),  # types in signatures, of modules without a page
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# API pages, from docstrings.
autodoc_mock_imports = ["lightning", "transformers"]  # the trainers of decorlib.integrations
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # `root=ROOT`, not the path of whoever built the report
autodoc_default_options = {"show-inheritance": True}
# What type checkers know stands in the signatures by its name (decorlib.layers.options).
autodoc_type_aliases = {
    name: name for name in ("AnyRule", "Center", "Layers", "Padding", "Rate", "Reduction", "Size", "Span", "Variance")
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "decorlib"
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_static_path = ["_static"]
html_css_files = ["decorlib.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the side bar already
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_issues_button": False,
    "use_repository_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Mathematics becomes MathML while building: no script, no font to carry, and a screen reader can read it.
_KNOWN = [
    (r"\\(t|d)?frac\s*(\d)\s*(\d)", r"\\\1frac{\2}{\3}"),
    (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),  # MathML stretches fences by itself
    (r"\\bm(?![A-Za-z])", r"\\boldsymbol"),
    (r"\\dots(?![A-Za-z])", r"\\ldots"),
    (r"\\(label|tag)\{[^}]*\}", ""),
]


def _accents(mathml: str) -> str:
    """Put the index of an accented symbol beside it; docutils puts it below, as for a sum."""
    if "<munderover" not in mathml:
        return mathml
    ET.register_namespace("", "http://www.w3.org/1998/Math/MathML")
    root = ET.fromstring(mathml)
    prefix = root.tag.removesuffix("math")
    for under in root.iter(f"{prefix}munderover"):
        base, index, accent = under
        if accent.tag == f"{prefix}mo" and accent.get("stretchy") == "false":
            under.tag = f"{prefix}msub"
            over = ET.Element(f"{prefix}mover", accent="true")
            over.extend([base, accent])
            under[:] = [over, index]
    return ET.tostring(root, encoding="unicode")


def _mathml(node, block: bool) -> str:
    tex = node.astext().strip()
    for pattern, replacement in _KNOWN:
        tex = re.sub(pattern, replacement, tex)
    if (r"\\" in tex or "&" in tex) and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        return _accents(tex2mathml(tex, as_block=block))
    except (MathError, AttributeError, IndexError, TypeError) as error:  # the last three: unbalanced input
        logging.getLogger(__name__).warning("cannot show the formula %r: %s", tex, error, location=node)
        return "<code>formula</code>"


def _inline(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(_mathml(node, block=False))
    raise SkipNode


def _block(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(f'<div class="math" tabindex="0">{_mathml(node, block=True)}</div>')
    raise SkipNode


def _escape_stars(app, what, name, obj, options, lines):
    """A shape such as (*, D), or **options, in a docstring is text, not emphasis that never ends."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)  # what stands in backquotes is left as it is
        parts[::2] = [re.sub(r"(?<=[(, ])\*(?=[*,\w])", r"\\*", part) for part in parts[::2]]
        lines[index] = "".join(parts)


def _aliases(app, what, name, obj, options, signature, returns):
    """A type that has a name of its own stands there by that name, not by that of sphinx's stand-in for it."""
    return tuple(text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returns))


def _formulas(app, what, name, obj, options, lines):
    """Lines that are set in, in the words about a module, are formulas below each other: they keep their lines."""
    if what != "module":
        return
    kept: list[str] = []
    for line in lines:
        said = [text for text in kept if text.strip()]
        begins = line.startswith("    ") and kept and not kept[-1].strip() and said
        if begins and not said[-1].startswith((" ", "* ", "- ")) and not said[-1].rstrip().endswith("::"):
            kept += [".. code-block:: text", ""]
        kept.append(line)
    lines[:] = kept


def _public_roles(app, what, name, obj, options, lines):
    """A role that names one of ours leads to the page of names for users, wherever in the library it stands."""
    facades = {"decorlib.study": import_module("decorlib.study").__all__, "decorlib": import_module("decorlib").__all__}

    def public(match):
        role, before, target, after = match.groups()
        parts = target.split(".")
        for facade, names in facades.items():
            for i, part in enumerate(parts):
                if part in names and (i == 0 or target.startswith(f"{facade}.")):
                    shown = "~" if i == 0 or before.endswith("~") else before
                    return (
                        f":{role}:`{shown if before in ('', '~') else before}{'.'.join([facade, *parts[i:]])}{after}`"
                    )
        return match[0]

    for index, line in enumerate(lines):
        lines[index] = re.sub(r":(class|func|meth|attr|exc|data):`((?:[^`<]*<)?~?)([\w.]+)(>?)`", public, line)


def linkcode_resolve(domain, info):
    """Source of an object: the file in the clone that holds the report."""
    if domain != "py" or not info["module"]:
        return None
    value = sys.modules.get(info["module"])  # of a public name: the module that it is written in
    for part in info["fullname"].split("."):
        value = getattr(value, part, None)
    written = getattr(value, "__module__", None) or ""  # of a value such as a dictionary: where its type is written
    path = (written if written.split(".")[0] == "decorlib" else info["module"]).replace(".", "/")
    name = f"{path}/__init__.py" if os.path.isdir(f"{_CLONE}/{path}") else f"{path}.py"
    return f"{_TO_CLONE}/{name}"


def _source_links_of_top_pages(app, doctree):
    """:func:`linkcode_resolve` is not told the page; its ways start one folder deep, and these pages are not there."""
    if "/" in app.env.docname:
        return
    for node in doctree.findall(nodes.reference):
        if node.get("refuri", "").startswith(f"{_TO_CLONE}/"):
            node["refuri"] = node["refuri"].removeprefix("../")


def _wide_tables(app, doctree):
    """A table of many columns takes the place of the contents beside the text, too."""
    for table in list(doctree.findall(nodes.table)):
        if next(table.findall(nodes.tgroup))["cols"] >= 5 and isinstance(table.parent, nodes.section):
            table.replace_self(nodes.container("", table.deepcopy(), classes=["full-width"]))


def setup(app):
    """Register the renderer of formulas, the hooks for docstrings, for links to source and for wide tables."""
    app.connect("doctree-read", _wide_tables)
    app.connect("doctree-read", _source_links_of_top_pages, priority=900)
    app.connect("autodoc-process-signature", _aliases)
    app.connect("autodoc-process-docstring", _formulas)
    app.connect("autodoc-process-docstring", _escape_stars)
    app.connect("autodoc-process-docstring", _public_roles)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))


html_math_renderer = "mathml"
