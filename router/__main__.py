"""``python -m router CONFIG --directory-url URL``: a router by itself, without Ray."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from cluster_core.errors import OperatorError
from cluster_core.failpoint_control import VARIABLE, open_control
from cluster_core.settings_reader import load_document, read_section
from router.settings import RouterSettings
from router.wiring import Router, build_router


async def serve(router: Router) -> None:
    """Run until SIGINT or SIGTERM. Prints one line of JSON once requests are served."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    address = await router.start()
    try:
        sys.stdout.write(json.dumps({"ready": True, "address": address}) + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await router.close()


def main() -> int:
    """Read the command line and serve; return 2 for what the operator must change."""
    parser = argparse.ArgumentParser(prog="python -m router", description="Serve the gRPC API before pools of workers.")
    parser.add_argument("config", type=Path, help="the cluster's TOML file")
    parser.add_argument("--directory-url", default="", help="redis://, rediss:// or unix:// of the block directory")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s router %(levelname)s %(message)s")
    try:
        document = load_document(arguments.config)
        open_control(os.environ.get(VARIABLE, ""), read_section(document, "router", RouterSettings).host)
        asyncio.run(serve(build_router(document, arguments.directory_url)))
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
