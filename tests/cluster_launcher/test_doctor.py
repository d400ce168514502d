"""What the doctor finds."""

import json
import socket
from pathlib import Path

import pytest

from cluster_launcher.__main__ import main
from cluster_launcher.doctor_command import router_port
from cluster_launcher.findings import Verdict
from cluster_launcher.network_findings import port_is_free, ray_listens, ucx
from cluster_launcher.state_file import this_process

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


def test_a_port_that_our_own_cluster_has_is_as_it_should_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ours = this_process(name="mine", address=address, model="demo", directory_url="", configuration=Path("c.toml"))
        finding = router_port(address, [ours])
        assert finding.verdict is Verdict.OK
        assert "'mine'" in finding.found
        other = this_process(name="b", address="127.0.0.1:1", model="", directory_url="", configuration=Path("c.toml"))
        assert router_port(address, [other]).verdict is Verdict.FAIL


def test_a_preferred_ucx_of_the_system_is_the_one_that_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "ucx_info"
    program.write_text("#!/bin/sh\necho '# Library version: 9.8.7'\necho '#      Transport: rc_mlx5'\n")
    program.chmod(0o755)
    preferred = {"PATH": f"{tmp_path}:/bin", "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY": "true"}
    said = {finding.part: finding.found for finding in ucx(preferred)}
    assert said["ucx"].startswith(f"9.8.7 from {program}")
    assert said["ucx rdma"] == "rc_mlx5"
    wheel = {
        finding.part: finding.found for finding in ucx({**preferred, "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY": "false"})
    }
    assert "wheel" in wheel["ucx"]


def test_a_ray_that_a_configuration_names_is_looked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        note = tmp_path / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text(address)
        assert ray_listens(address, {}).verdict is Verdict.OK
        assert ray_listens(f"ray://{address}", {}).verdict is Verdict.OK
        assert ray_listens("auto", {"RAY_ADDRESS": address}).verdict is Verdict.OK
        assert ray_listens("auto", {"TMPDIR": str(tmp_path)}).verdict is Verdict.OK
    assert ray_listens(address, {}).verdict is Verdict.FAIL
    assert "ray start --head" in ray_listens("auto", {"TMPDIR": str(tmp_path / "empty")}).cure


def test_the_doctor_looks_at_the_ray_and_the_tokenizer_of_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(CONFIGS.parent / "examples" / "demo_model" / name)
    (tmp_path / "tokenizer.json").write_text("{")
    path = tmp_path / "cluster.toml"
    path.write_text(f'[cluster]\nray_address = "127.0.0.1:1"\n[model]\npath = "{tmp_path}"\n')
    assert main(["doctor", str(path), "--json"]) == 1
    said = {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert said["cluster.ray_address"]["verdict"] == "fail"
    assert "tokenizer.json" in said["model.path"]["cure"]
