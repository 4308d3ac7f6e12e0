"""Measurements behind the promises about speed and memory; `benchmarks.speed` runs them all."""
