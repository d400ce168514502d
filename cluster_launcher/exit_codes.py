"""What a command's exit code says, and the one place where errors become one line and a code."""

from enum import IntEnum

from cluster_core.errors import BatonError, OperatorError, RequestError, RetryLater


class ExitCode(IntEnum):
    """The codes of every command."""

    OK = 0
    NOT_SO = 1
    """The thing asked for is not so: tokens differ, a check of the doctor failed, a request ended early."""
    USAGE = 2
    """The command line or the configuration: the line names the key or part and the cure."""
    UNREACHABLE = 3
    """No cluster answers."""
    INTERRUPTED = 130
    """Ctrl-C, as shells number it."""


class ClusterUnreachable(BatonError):
    """No cluster answers where one was expected; the text says how to start or name one."""


def exit_code_of(error: BatonError) -> ExitCode:
    """Return the code with which a command ends after ``error``."""
    match error:
        case ClusterUnreachable():
            return ExitCode.UNREACHABLE
        case OperatorError() | RequestError():
            return ExitCode.USAGE
        case RetryLater():
            return ExitCode.NOT_SO
        case _:
            return ExitCode.NOT_SO
