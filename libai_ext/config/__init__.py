"""Lazy configs: reading, overriding, checking and writing them."""
