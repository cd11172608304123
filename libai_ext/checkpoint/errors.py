"""The one exception of everything that reads or writes checkpoints."""


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file and says what is wrong with it."""
