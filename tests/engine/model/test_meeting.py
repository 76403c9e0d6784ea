"""A meeting's store is used and destroyed at any time, and touches no file but its own."""

import subprocess
import sys

import pytest

from blora.engine.model.meeting import create_meeting

# A store that an error keeps alive for longer than its shards, as a debugger or a test's report would.
PROGRAM = """
import gc, os, sys, tempfile
import torch
from blora.engine.model import shard_group
from blora.engine.model.meeting import create_meeting
from blora.engine.parallel.shards import Shards

shard_group.CONNECT_TIMEOUT = 0.05
shards = Shards((), create_meeting())
kept = []
try:
    shard_group.ConnectedGroup(0, 2, shards.meeting.open(), torch.device("cpu"))
except RuntimeError as error:
    kept.append(error)
group = shard_group.ConnectedGroup(0, 1, create_meeting().open(), torch.device("cpu"))
shards.close()
files = [tempfile.TemporaryFile() for _ in range(20)]
kept.clear()
del shards, group
gc.collect()
sys.exit(sum(os.fstat(file.fileno()).st_size for file in files))
"""


@pytest.mark.slow
def test_a_store_that_outlives_its_shards_harms_no_file() -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=100, check=False).returncode == 0


def test_meetings_of_a_process_do_not_see_each_other() -> None:
    first, second = create_meeting(), create_meeting()
    first.open().set("here/0", "first")
    assert not second.open().check(["here/0"])
    assert first.open().get("here/0") == b"first"
