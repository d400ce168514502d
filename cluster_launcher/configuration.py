"""The whole configuration file, read and checked before anything starts.

Every section is read through its own package's settings class, so each key has one owner; a mistake anywhere is one
line that names the key. `check_surroundings` then looks at what the file names: the model folder, the port, the server.
"""

import dataclasses
import socket
from pathlib import Path
from urllib.parse import urlsplit

from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable
from cluster_core.settings_reader import Document, load_document, read_section
from cluster_launcher.findings import Verdict
from cluster_launcher.network_findings import NIXL_PACKAGES, is_here, port_is_free
from cluster_launcher.settings import ClusterSettings
from decode_worker.settings import DecodeSettings, SpeculationSettings
from inference_engine.served_model import ServedModel, open_draft_model, open_served_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from kv_transfer.settings import TransferSettings
from prefill_worker.settings import PrefillSettings
from router.model_texts import load_model_texts
from router.settings import RouterSettings

_DEFAULT_REDIS_PORT = 6379
_CONNECT_TIMEOUT_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A file whose every key has been checked. ``document`` is what the workers and the router read again."""

    path: Path
    document: Document
    cluster: ClusterSettings
    model: ModelSettings
    hash_model: HashModelSettings
    engine: EngineSettings
    router: RouterSettings
    prefill: PrefillSettings
    decode: DecodeSettings
    speculation: SpeculationSettings
    transfer: TransferSettings
    directory: DirectorySettings

    @property
    def router_address(self) -> str:
        """Where the router is told to listen."""
        return f"{self.router.host}:{self.router.port}"


def load_configuration(path: Path) -> Configuration:
    """Read every section. Raises `SettingsError` naming the first key that is wrong."""
    return configuration_of(load_document(path), path)


def configuration_of(document: Document, path: Path) -> Configuration:
    """Read every section of a document that is in memory already."""
    return Configuration(
        path=path,
        document=document,
        cluster=read_section(document, "cluster", ClusterSettings),
        model=read_section(document, "model", ModelSettings),
        hash_model=read_section(document, "hash_model", HashModelSettings),
        engine=read_section(document, "engine", EngineSettings),
        router=read_section(document, "router", RouterSettings),
        prefill=read_section(document, "prefill", PrefillSettings),
        decode=read_section(document, "decode", DecodeSettings),
        speculation=read_section(document, "speculation", SpeculationSettings),
        transfer=read_section(document, "transfer", TransferSettings),
        directory=read_section(document, "directory", DirectorySettings),
    )


def check_surroundings(configuration: Configuration) -> ServedModel:
    """Find what would make a start fail, in a second instead of a minute, and return the opened model.

    Raises `OperatorError`.
    """
    model = check_model(configuration)
    check_transfer(configuration)
    if configuration.speculation.draft_model:
        open_draft_model(configuration.document, model, configuration.speculation.draft_model)
    port = port_is_free("router.port", configuration.router_address)
    if port.verdict is Verdict.FAIL:
        message = f"router.port: {port.found}; {port.cure}"
        raise PartUnavailable(message)
    if configuration.directory.url:
        check_directory_url(configuration.directory.url)
    return model


def check_model(configuration: Configuration) -> ServedModel:
    """Open the model and read all but its weights, as the workers and the router will. Raises `OperatorError`."""
    model = open_served_model(configuration.document)
    load_model_texts(model)
    return model


def check_transfer(configuration: Configuration) -> None:
    """Raise `PartUnavailable` where blocks cannot be handed over as the file says."""
    if configuration.transfer.transport == "nixl" and not is_here(NIXL_PACKAGES):
        message = "transfer.transport: NIXL is not installed; run `pip install 'baton-serve[nixl]'`, or set \"ucx\""
        raise PartUnavailable(message)


def check_directory_url(url: str) -> None:
    """Raise `PartUnavailable` when nothing listens there. What it is that listens, the directory asks later."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(_CONNECT_TIMEOUT_S)
                probe.connect(parts.path)
        else:
            where = (parts.hostname or "127.0.0.1", parts.port or _DEFAULT_REDIS_PORT)
            socket.create_connection(where, timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        where_text = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or _DEFAULT_REDIS_PORT}"
        message = (
            f"directory.url: nothing answers at {where_text} ({why}); "
            "start the Redis or Valkey server, or leave the key out to have one started"
        )
        raise PartUnavailable(message) from error
