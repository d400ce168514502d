"""What the doctor finds."""

import json
import socket
from pathlib import Path

import pytest

from cluster_launcher.__main__ import main
from cluster_launcher.findings import Verdict
from cluster_launcher.network_findings import port_is_free, ucx

CONFIGS = Path(__file__).resolve().parents[2] / "cluster_configs"


def test_every_finding_has_a_verdict_and_every_failure_a_cure(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", str(CONFIGS / "local_cpu.toml"), "--json"])
    report = json.loads(capsys.readouterr().out)
    findings = report["findings"]
    parts = {finding["part"] for finding in findings}
    assert {"python", "torch", "ray", "ucx", "ucx rdma", "directory server", "locked memory"} <= parts
    assert all(finding["cure"] for finding in findings if finding["verdict"] != "ok")
    failed = [finding for finding in findings if finding["verdict"] == "fail"]
    assert code == (1 if failed else 0)
    assert report["healthy"] is not bool(failed)


def test_ucx_itself_is_asked_for_its_transports() -> None:
    said = {finding.part: finding for finding in ucx({})}
    assert "tcp" in said["ucx"].found
    assert said["ucx shared memory"].verdict in {Verdict.OK, Verdict.WARN}


def test_a_refused_configuration_is_a_failure_with_its_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[engine]\nspeed = 11\n")
    assert main(["doctor", str(path)]) == 1
    assert "fail" in capsys.readouterr().out


def test_a_taken_port_is_a_failure_that_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = port_is_free("router.port", f"127.0.0.1:{taken.getsockname()[1]}")
    assert finding.verdict is Verdict.FAIL
    assert "router.port" in finding.cure
    assert port_is_free("router.port", "127.0.0.1:0").verdict is Verdict.OK
    assert port_is_free("router.host", "192.0.2.1:0").verdict is Verdict.FAIL
