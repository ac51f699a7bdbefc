"""Sparsely activated models in JAX; one folder per slot, see README.md."""
