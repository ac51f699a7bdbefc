"""Scaling laws: forms, fits with intervals, IsoFLOP analysis and its report."""
