"""Searches for sizes: which width each feature needs."""

from recemb.search.evolution import Found, evolve

__all__ = ["Found", "evolve"]
