"""Code in a process of its own: after a reload, or without the types that the tests enforce."""

import subprocess
import sys


def alone(code):
    """What a script prints; it must end well."""
    done = subprocess.run([sys.executable, "-c", f"if True:\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
