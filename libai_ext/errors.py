"""Errors that a user can mend: programs show the message alone and end with status 2."""

from libai_ext.text import printable


class UserError(ValueError):
    """The message names the file or the key, and says what to do."""


class ConfigError(UserError):
    """A config or an option cannot be used."""


class DataError(UserError):
    """A data set cannot be used. The message is one line, whatever its files are called."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class DataUnavailable(DataError):
    """Data that can be used cannot be read for the present: the one error here that a user need
    not mend. Programs end with status 74, and may be restarted."""
