"""Where the importer's conversation with a prefill worker takes place."""

from cluster_rpc.channels import ChannelPool
from cluster_rpc.handoff_calls import HandoffCalls
from cluster_rpc.worker_messages import PrefillOrigin
from kv_transfer.import_job import Imported, ImportJob
from kv_transfer.importer import Importer


class GrpcBlockSource:
    """A `decode_worker.prompt_import.BlockSource`: opens the call and lets the importer talk."""

    def __init__(self, importer: Importer, channels: ChannelPool) -> None:
        self._importer = importer
        self.calls = HandoffCalls(channels)

    async def __call__(self, origin: PrefillOrigin, job: ImportJob) -> Imported:
        """Import the job's blocks from ``origin``."""
        imported = await self.calls.converse(
            origin.address, origin.worker_id, lambda channel: self._importer.run(job, channel)
        )
        self._importer.links.learn(origin.worker_id, origin.incarnation, imported.report)
        return imported

    async def close(self) -> None:
        """Wait for the calls that are being ended."""
        await self.calls.close()
