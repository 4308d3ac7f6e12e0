"""Findings -> diagnoses: what happened, why, how sure that is, what to do."""
