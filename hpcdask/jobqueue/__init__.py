"""Batch systems: what each one calls things, and submitting and watching jobs on any of them."""
