"""Recipes: system extensions as data, and the engine that builds them."""
