"""The errors that a person can do something about. Each is one line, and each has its exit code.

A message names the file and the key or line, what was found, what was expected, and what to do. Anything else that
is raised is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 6
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """`value` as an error shows it: what `repr` says, cut to a bounded length."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


class KarmaError(Exception):
    """An error to be shown as one line. `exit_code` is what the process ends with."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


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
