"""A local Ray that several clusters of a test session attach to: `python -m tests.end_to_end.shared_ray`.

Prints its address and lives until its standard input ends.
"""

import asyncio
import sys

from cluster_launcher.ray_cluster import RayCluster
from cluster_launcher.settings import ClusterSettings


async def main() -> None:
    """Start, tell, wait, end."""
    ray = RayCluster(ClusterSettings(name="shared"))
    try:
        sys.stdout.write(await ray.start() + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await ray.close()
        ray.remove_folders()


if __name__ == "__main__":
    asyncio.run(main())
