"""Recorded problems that ship with the package (see each file's source in the README)."""
