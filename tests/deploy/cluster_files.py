"""The files of ``cluster_configs/ray``, read."""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "cluster_configs" / "ray"
RAY_UP_FILES = ("on_premise.yaml", "aws.yaml", "gcp.yaml")


def read_yaml(name: str) -> dict[str, Any]:
    """Return the one document of a file."""
    document: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return document


def read_kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration map and the cluster."""
    configuration, cluster = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text(encoding="utf-8"))
    return configuration, cluster


def write_yaml(path: Path, document: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
