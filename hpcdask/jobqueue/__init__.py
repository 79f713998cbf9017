"""Batch systems: what each one calls things, and submitting jobs to any of them."""
