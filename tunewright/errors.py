"""The ways in which a stage ends without a result, other than by a defect of ours.

Each has an exit status of its own, so that whoever started the stage can tell a user's mistake from a
closed gate and from a network that was down, without reading any text.
"""

EXIT_CRASH = 1
EXIT_BAD_INPUT = 2
EXIT_GATE_CLOSED = 3
EXIT_UNREACHABLE = 4
EXIT_DISK_FULL = 5
EXIT_STOPPED = 130


class UserError(Exception):
    """Bad input. The message names the file, the row or the key, what was found, what was expected, what to do."""

    exit_status = EXIT_BAD_INPUT
    outcome = "bad_input"


class GateClosed(UserError):
    """A gate judged what it was given and stays shut. Nothing is broken, and a retry would change nothing."""

    exit_status = EXIT_GATE_CLOSED
    outcome = "gate_closed"


class Unreachable(UserError):
    """Another machine did not answer. The only failure that a retry can mend."""

    exit_status = EXIT_UNREACHABLE
    outcome = "unreachable"


class DiskFull(UserError):
    """No space is left where the stage writes, or too little for what it is going to write."""

    exit_status = EXIT_DISK_FULL
    outcome = "disk_full"
