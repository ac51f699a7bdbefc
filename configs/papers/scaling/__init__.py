"""Recipes of papers on scaling."""
