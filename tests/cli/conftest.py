import os
import subprocess
import sys

import pytest


@pytest.fixture
def run():
    """Run a command line in a process of its own."""

    def run(*words, **environment):
        return subprocess.run(
            [sys.executable, "-m", "vadexport", *map(str, words)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    return run
