"""What the tests of studies share."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def fresh():
    """Run lines of Python in a new process, which knows nothing of this one, and read the JSON that they print."""

    def run(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
