"""The launcher: it starts, watches and ends the processes of a job."""
