"""Weights of other frameworks' models: to our names and layouts, and back."""
