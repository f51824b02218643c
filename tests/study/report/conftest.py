"""What the tests of the report share."""

import base64
import shutil

import pytest
from small_report import ROOT

from decorlib.study.evidence import figures
from decorlib.study.report import freshness, pages


@pytest.fixture(scope="session")
def png() -> str:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ax.plot([1, 2])
    data = base64.b64encode(figures.png(fig)).decode()
    plt.close(fig)
    return data


@pytest.fixture
def small_docs(tmp_path, monkeypatch):
    """A report of the notebooks alone: the frame and the generated parts, without the pages of the library."""
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs" / "_static", docs / "_static")
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    parts = "\n".join(
        f"```{{include}} _generated/{n}.md\n```\n" for n in ("headline", "answers", "gallery", "contents")
    )
    (docs / "index.md").write_text(f"# Report\n\n{parts}")
    monkeypatch.setattr(pages, "modules", list)
    monkeypatch.setattr(freshness, "PACKAGE", tmp_path / "docs")
    return docs
