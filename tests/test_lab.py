"""How `make lab` starts JupyterLab: it asks nothing, and marks no notebook as modified on opening."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

from traitlets.config import PyFileConfigLoader

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / ".jupyter"


def test_make_lab_reads_these_settings():
    recipe = (ROOT / "Makefile").read_text().partition("\nlab:")[2].partition("\n\n")[0]
    assert 'JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter' in recipe


def test_there_is_no_question_about_news_and_no_call_to_the_network():
    overrides = json.loads((LAB / "labconfig" / "default_setting_overrides.json").read_text())
    assert overrides == {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}
    }


def test_a_notebook_is_read_with_what_its_kernel_will_say(tmp_path):
    """JupyterLab writes the kernel's answer into the notebook; where that is there already, nothing is modified."""
    stored = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    shutil.copy(stored, tmp_path)
    settings = PyFileConfigLoader("jupyter_server_config.py", str(LAB)).load_config()
    manager = settings.ServerApp.contents_manager_class(root_dir=str(tmp_path))
    model = asyncio.run(manager.get(stored.name))
    metadata = model["content"]["metadata"]
    assert metadata["language_info"]["version"] == sys.version.split()[0]
    assert metadata["kernelspec"] == json.loads(stored.read_text(encoding="utf-8"))["metadata"]["kernelspec"]
    assert json.loads((tmp_path / stored.name).read_text()) == json.loads(stored.read_text(encoding="utf-8"))
