"""Probing: a live model run on data, and what its layers make of them."""
