"""The errors that a person can do something about. Each is one line, and each has its exit code.

A message names the file and the key or line, what was found, what was expected, and what to do. Anything else that
is raised is a fault of ours and keeps its traceback.
"""

from __future__ import annotations


class KarmaError(Exception):
    """An error to be shown as one line. `exit_code` is what the process ends with."""

    exit_code = 1


class InputError(KarmaError):
    """The user's input is wrong: a recipe, a data file, an argument."""

    exit_code = 1


class SetupError(KarmaError):
    """The environment lacks something: a package, a file of a package, a token, memory, an interpreter."""

    exit_code = 2


class GateFailedError(KarmaError):
    """The release gate's verdict is `fail`."""

    exit_code = 3


class GateInconclusiveError(KarmaError):
    """The release gate's verdict is `inconclusive`."""

    exit_code = 4


class IntegrityError(KarmaError):
    """Bytes are not those that were promised: a hash, a signature, a half-written file."""

    exit_code = 6
