"""How `make lab` opens the notebooks: not marked as modified before anyone has touched them.

Notebooks are committed without what the kernel says of itself (its version, ...), and JupyterLab writes that into a
notebook as soon as its kernel answers, which marks it. Here it is filled in when the notebook is read.
"""

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class Filled(AsyncLargeFileManager):
    """The files as they are, with the language of notebooks as the kernel of this environment will tell it."""

    async def get(self, path, content=True, type=None, format=None, require_hash=False):
        model = await super().get(path, content=content, type=type, format=format, require_hash=require_hash)
        if model["type"] == "notebook" and content:
            metadata = model["content"]["metadata"]
            if metadata.get("kernelspec", {}).get("name") == "python3":
                metadata["language_info"] = dict(IPythonKernel.language_info)
        return model


c.ServerApp.contents_manager_class = Filled  # noqa: F821 (c is the configuration that reads this file)
