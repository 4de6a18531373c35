"""The errors a person meets, and the exit code of each.

EmsweepError
├── UserError   exit 2   the input is wrong; one line says what, where and what to do; nothing was written
└── Fault       exit 1   the world is wrong (disk full, another runner at work); nothing was lost

Anything else is a bug and keeps its traceback.
"""


class EmsweepError(Exception):
    """Base of every error that is printed as one line."""

    exit_code = 1


class UserError(EmsweepError):
    """The person's input cannot be carried out."""

    exit_code = 2


class Fault(EmsweepError):
    """Something outside the program failed; running the same command again continues."""

    exit_code = 1
