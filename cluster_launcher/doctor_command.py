"""`baton doctor`: what this machine has, what it lacks, and the cure for each."""

from collections.abc import Iterator
from pathlib import Path

from block_directory.settings import DirectorySettings
from cluster_core.errors import BatonError, OperatorError
from cluster_launcher.configuration import Configuration, check_directory_url, check_model, load_configuration
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.findings import Finding, Verdict, fail, findings_table, ok
from cluster_launcher.host_findings import host
from cluster_launcher.link_findings import cluster_links
from cluster_launcher.network_findings import network, port_is_free, ray_listens
from cluster_launcher.output import Output
from cluster_launcher.software_findings import software
from cluster_launcher.state_file import RunningCluster
from cluster_launcher.surroundings import Surroundings
from router.settings import RouterSettings


def doctor(path: Path | None, surroundings: Surroundings, output: Output) -> ExitCode:
    """Look at everything; with ``path``, also at what that configuration needs. Fails when any finding does."""
    findings = list(_findings(path, surroundings))
    failed = sum(finding.verdict is Verdict.FAIL for finding in findings)
    output.facts({"healthy": failed == 0, "findings": [finding.as_json() for finding in findings]})
    output.console.print(findings_table(findings))
    warned = sum(finding.verdict is Verdict.WARN for finding in findings)
    output.console.print(f"{len(findings)} findings: {failed} failed, {warned} warnings")
    return ExitCode.NOT_SO if failed else ExitCode.OK


def router_port(address: str, running: list[RunningCluster]) -> Finding:
    """Say whether the router's port is free, or taken by a cluster of ours, which is as it should be."""
    finding = port_is_free("router.port", address)
    if finding.verdict is Verdict.FAIL:
        for cluster in running:
            if cluster.address.rpartition(":")[2] == address.rpartition(":")[2]:
                return ok(
                    "router.port",
                    f"{address} is taken by the cluster {cluster.name!r} that runs here (pid {cluster.pid}); "
                    "a second one needs another port",
                )
    return finding


def _findings(path: Path | None, surroundings: Surroundings) -> Iterator[Finding]:
    yield from software()
    yield from host()
    configuration: Configuration | None = None
    if path is not None:
        try:
            configuration = load_configuration(path)
        except OperatorError as error:
            yield fail(str(path), "refused", str(error))
        else:
            yield ok(str(path), "every key is known and every value can be served")
            yield from _configured(configuration, surroundings)
    router = configuration.router if configuration else RouterSettings()
    yield from network(surroundings.environment)
    running = surroundings.state_files.alive()
    yield router_port(f"{router.host}:{router.port}", running)
    yield from cluster_links(running)


def _configured(configuration: Configuration, surroundings: Surroundings) -> Iterator[Finding]:
    try:
        model = check_model(configuration)
    except BatonError as error:
        yield fail("model.path", "cannot be served", str(error))
    else:
        yield ok("model.path", f"{model.identity.name}, context {model.identity.max_context_tokens}")
    if configuration.directory != DirectorySettings() and configuration.directory.url:
        try:
            check_directory_url(configuration.directory.url)
        except OperatorError as error:
            yield fail("directory.url", "no answer", str(error))
        else:
            yield ok("directory.url", "something listens there")
    if configuration.cluster.ray_address:
        yield ray_listens(configuration.cluster.ray_address, surroundings.environment)
