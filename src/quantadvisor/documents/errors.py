"""The tree of our exceptions, and the exit code each one ends in.

AdvisorError
├── BadInput          exit 2   what is wrong, where, and how to mend it: one line
│   └── Unavailable   exit 2   a named runtime or package is missing: the command that adds it
├── NotComparable     exit 3   two results of different devices or workloads
├── CandidateFailed   never leaves a run: the candidate is refused with this reason
└── Interrupted       exit 130 resumable
"""

from __future__ import annotations


class AdvisorError(Exception):
    """Base of all errors that a user may see; `exit_code` is the contract's."""

    exit_code = 70


class BadInput(AdvisorError):
    """`where: what (found value); mend`."""

    exit_code = 2

    def __init__(self, where: str, what: str, mend: str = "") -> None:
        line = f"{where}: {what}" + (f"; {mend}" if mend else "")
        super().__init__(" ".join(line.split()))


class Unavailable(BadInput):
    """Something named by the user is not installed here."""


class NotComparable(AdvisorError):
    exit_code = 3


class CandidateFailed(AdvisorError):
    """A worker crashed, hung, ran out of its memory limit or answered NaN."""


class Interrupted(AdvisorError):
    exit_code = 130
