"""The exception of all code that reads or writes checkpoints."""

from libai_ext.errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file and says what is wrong with it."""
