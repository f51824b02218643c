"""For ``pytest --nbval notebooks/NN_*.ipynb``: no progress bars, whose text holds the time."""

import os

os.environ.setdefault("DECORLIB_PROGRESS", "off")
