"""Errors that the user can correct: programs print the message alone and exit with status 2."""

from libai_ext.text import masked, printable


class UserError(ValueError):
    """The message names the file or key, and says what to do."""

    def __init__(self, message: object = ""):
        super().__init__(masked(str(message)))


class ConfigError(UserError):
    """A config or an option cannot be used."""


class DataError(UserError):
    """A data set cannot be used. The message is one line, even if a file name is not."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class DataUnavailable(DataError):
    """Data cannot be read for the present. Programs exit with status 74, and may be restarted
    without a change."""
