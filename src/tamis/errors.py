"""Exceptions a caller may catch.

Every message has one form: *where: what must hold, got which value. What to do.* Each class also
derives from the built-in exception that a caller would expect, so ``except ValueError`` works too.
"""


class TamisError(Exception):
    """Any failure that tamis foresaw; the command line prints it without a traceback."""


class TamisWarning(UserWarning):
    """What a person should look at, told to Python callers; the command line prints it itself."""


class ConfigError(TamisError, ValueError):
    """A setting is unknown, missing, mistyped or out of range."""


class SchemaError(TamisError, ValueError):
    """A schema contradicts itself or the columns of the data."""


class DataError(TamisError, ValueError):
    """Input rows cannot be read or hold values that have no meaning."""


class ArtifactError(TamisError, ValueError):
    """A file that tamis wrote is missing, truncated, altered or of another version."""


class StorageError(ArtifactError):
    """A file cannot be written: the disk is full, or the place is read-only."""


class DivergedError(TamisError, ArithmeticError):
    """A training came to a loss, or to predictions, that are no finite numbers."""


class RunInUseError(TamisError, RuntimeError):
    """A run folder belongs to a process that is still alive."""


class StoreError(TamisError, RuntimeError):
    """The store of ads and events cannot be reached or written just now."""


class ServerError(TamisError, RuntimeError):
    """A server cannot be reached, or refuses what it was asked."""


class RefreshRefusedError(TamisError, RuntimeError):
    """What was learnt anew is worse than what serves, which goes on."""
