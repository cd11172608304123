"""Tar shards on a server, with a bounded cache on this machine."""
