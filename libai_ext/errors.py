"""Errors that a user can mend: programs show the message alone and end with status 2."""


class UserError(ValueError):
    """The message names the file or the key, and says what to do."""


class ConfigError(UserError):
    """A config or an option cannot be used."""


class DataError(UserError):
    """A data set cannot be used."""
