"""Routing: from scores to chosen experts, to rows in expert order and back."""
