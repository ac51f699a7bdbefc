"""Softmax attention of tokens to those before them in their document."""
