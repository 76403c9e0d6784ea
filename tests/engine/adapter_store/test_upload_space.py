"""The files of uploads: bounded, gone with their server, also with one that was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from blora.engine.adapter_store.upload_space import MOST_UPLOADS, UploadSpace
from blora.engine.errors import LimitReached


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_uploads_have_folders_of_their_own_which_go(temporary: Path) -> None:
    space = UploadSpace(100)
    assert not files(temporary)  # before the first upload
    first, second = space.take(60), space.take(40)
    (Path(first.name) / "a").write_text("a")
    first.cleanup()
    first.cleanup()
    assert Path(second.name).is_dir() and not Path(first.name).exists()
    second.cleanup()
    assert not files(temporary)  # and behind the last one
    space.take(60)
    space.close()
    assert not files(temporary)


def test_uploads_are_bounded_together() -> None:
    space = UploadSpace(10)
    folders = [space.take(10) for _ in range(MOST_UPLOADS)]
    with pytest.raises(LimitReached, match="2560 of 2560 bytes"):
        space.check_room(1)
    folders.pop().cleanup()
    space.take(10)
    with pytest.raises(LimitReached):
        space.take(1)
    space.close()


KILLED = """
import os, signal
from pathlib import Path
from blora.engine.adapter_store.upload_space import UploadSpace
space = UploadSpace(100)
(Path(space.take(60).name) / "a").write_text("a")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_files_of_a_killed_server_are_removed_and_those_of_a_live_one_are_not(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = UploadSpace(100)
    kept = Path(live.take(10).name)
    foreign = temporary / "blora-uploads-foreign"  # without a lock: nothing is known of it
    foreign.mkdir()
    (temporary / "blora-uploads-link").symlink_to(temporary)
    monkeypatch.setenv("TMPDIR", str(temporary))
    subprocess.run([sys.executable, "-c", KILLED], timeout=100)
    dead = list(temporary.glob("blora-uploads-*/adapter-*/a"))
    assert len(dead) == 1
    UploadSpace(0)
    assert not dead[0].parent.parent.exists() and kept.is_dir() and foreign.is_dir()
    live.close()
