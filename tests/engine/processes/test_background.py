"""Children in the background get a small share of the cores, in short slices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blora.engine.processes.background import NICE, SLICE

SEEN = """
from pathlib import Path
from blora.engine.processes.background import go_to_background
go_to_background()
print(Path("/proc/self/sched").read_text())
"""


def scheduling() -> str:
    return subprocess.run([sys.executable, "-c", SEEN], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not Path("/proc/self/sched").exists(), reason="the kernel tells nothing of its scheduling")
def test_it_is_nicer_and_its_slices_are_short_where_the_system_has_them() -> None:
    fields = dict(re.findall(r"^(\S+)\s*:\s*(\S+)$", scheduling(), re.MULTILINE))
    assert int(fields["prio"]) == 120 + min(os.nice(0) + NICE, 19)
    if "se.slice" in fields and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
        assert int(fields["se.slice"]) == SLICE
