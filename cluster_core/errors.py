"""Every error that Baton raises on purpose, by who must act.

::

    BatonError
    |-- RequestError             the client changes the request        (names a field)
    |   |-- InvalidField         a field's value cannot be served
    |   |-- TokenOutOfRange      a token id is not in the vocabulary
    |   |-- ContextTooLong       prompt and answer exceed the context
    |   |-- NotServed            the model or request that it names is not here
    |   `-- DuplicateRequest     the id is in use by a live request
    |-- RetryLater               the client waits and tries again
    |   |-- Overloaded           a queue is full
    |   `-- NoWorker             no worker can take the request now
    |-- RequestEnded             nobody needs to act
    |   |-- Cancelled            the client gave up
    |   `-- DeadlineExceeded     the client's time is up
    |-- LegFailed                the router tries another worker
    |   |-- WorkerLost           the worker's process or connection is gone
    |   |-- TransferFailed       blocks did not arrive whole
    |   `-- ExportGone           the exporter no longer knows the request
    `-- OperatorError            the operator changes the cluster      (names a part and the cure)
        |-- SettingsError        a key of the configuration file
        |-- ModelFolderError     a file of the model folder
        `-- PartUnavailable      a port, a server, a library

``cluster_rpc.errors`` holds the one table that translates them to gRPC statuses.
"""


class BatonError(Exception):
    """The root. Its text is one line that a person can act on."""


class RequestError(BatonError):
    """The request cannot be served as it is."""

    def __init__(self, field: str, reason: str) -> None:
        """Name the request's ``field`` and say what is wrong and what would be right."""
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class InvalidField(RequestError):
    """A field's value cannot be served."""


class TokenOutOfRange(RequestError):
    """A token id is not in the model's vocabulary."""


class ContextTooLong(RequestError):
    """Prompt and answer together exceed what the model or the block pool can hold."""


class NotServed(RequestError):
    """The request names a model that is not served here, or an earlier request that is not remembered."""


class DuplicateRequest(RequestError):
    """A live request has this id."""


class RetryLater(BatonError):
    """Nothing is wrong with the request; the cluster cannot take it now."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        """Say why, and after how many seconds a retry may succeed."""
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Overloaded(RetryLater):
    """A bounded queue is full."""


class NoWorker(RetryLater):
    """No live worker can take the request."""


class RequestEnded(BatonError):
    """The request ended before its answer did, and nobody is at fault."""


class Cancelled(RequestEnded):
    """The client cancelled or went away."""


class DeadlineExceeded(RequestEnded):
    """The client's deadline passed."""


class LegFailed(BatonError):
    """One leg of a placement failed; the request can go on elsewhere."""


class WorkerLost(LegFailed):
    """The worker's process or its connection is gone."""


class TransferFailed(LegFailed):
    """Blocks did not arrive, or not as they were sent."""


class ExportGone(LegFailed):
    """The exporter does not know the request, or no longer."""


class OperatorError(BatonError):
    """The cluster cannot run as configured. Commands print the text and exit with 2."""


class SettingsError(OperatorError):
    """A key of the configuration file is unknown, missing or of the wrong type."""


class ModelFolderError(OperatorError):
    """A file of the model folder is missing, broken, or not one that Baton can serve."""


class PartUnavailable(OperatorError):
    """A port is taken, a server is out of reach, a library is missing."""
