"""Weights of other frameworks' models, in our names and layouts, and back."""
