"""Checkpoints: native save and load, and the files of other frameworks without their code."""
