"""How commands find the cluster that runs on this machine."""

import dataclasses
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster_core.errors import PartUnavailable
from cluster_launcher.exit_codes import ClusterUnreachable
from cluster_launcher.state_file import RunningCluster, StateFiles, state_folder, this_process


def _running(name: str = "local") -> RunningCluster:
    return this_process(
        name=name, address="127.0.0.1:50051", model="demo", directory_url="unix:///d", configuration=Path("c.toml")
    )


def _gone(name: str = "local") -> RunningCluster:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return dataclasses.replace(_running(name), pid=ended.pid, process_started=1.0)


def test_what_was_written_is_found_without_a_name(tmp_path: Path) -> None:
    files = StateFiles(tmp_path / "baton")
    running = _running()
    path = files.write(running)
    assert files.find("") == running == files.find("local")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_cluster_the_line_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnreachable, match="baton up"):
        StateFiles(tmp_path).find("")


def test_a_stale_file_is_told_of_and_removed(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    path = files.write(_gone())
    with pytest.raises(ClusterUnreachable, match="is gone without a farewell"):
        files.find("")
    assert not path.exists()


def test_a_reused_pid_is_not_taken_for_the_cluster(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.write(dataclasses.replace(_running(), process_started=1.0))
    with pytest.raises(ClusterUnreachable):
        files.find("")


def test_several_clusters_need_a_name(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.write(_running("one"))
    files.write(_running("two"))
    with pytest.raises(ClusterUnreachable, match=r"one, two.*--cluster"):
        files.find("")
    assert files.find("two").name == "two"


def test_a_file_that_is_no_state_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[")
    with pytest.raises(ClusterUnreachable):
        StateFiles(tmp_path).find("")


def test_a_name_in_use_cannot_be_claimed(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = psutil.Process(other.pid).create_time()
        files.write(dataclasses.replace(_running(), pid=other.pid, process_started=started))
        with pytest.raises(PartUnavailable, match=r"cluster\.name"):
            files.claim("local")
        files.clear("local")
        assert files.find("local").pid == other.pid, "only the owner clears"
    finally:
        other.communicate(b"\n")
    files.claim("local")


def test_clear_removes_our_own_file(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    path = files.write(_running())
    files.clear("local")
    assert not path.exists()


def test_the_runtime_folder_wins_over_the_cache(tmp_path: Path) -> None:
    assert state_folder({"XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/h"}) == tmp_path / "baton"
    assert state_folder({"HOME": "/h"}) == Path("/h/.cache/baton")
    assert state_folder({"HOME": "/h", "XDG_CACHE_HOME": "/c"}) == Path("/c/baton")
    assert state_folder({"XDG_RUNTIME_DIR": str(tmp_path / "no"), "HOME": "/h"}) == Path("/h/.cache/baton")


def test_all_that_run_are_listed_and_stale_ones_are_not(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    files.write(_running("one"))
    files.write(_gone("two"))
    assert [running.name for running in files.alive()] == ["one"]
    assert StateFiles(tmp_path / "nowhere").alive() == []
