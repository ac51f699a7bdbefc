"""Rows times the matrix of their group."""
