"""Rows of a large table by number: weighted sums, products, gradients."""
