"""Output pipeline.

The stages are in ``stages/``. `pipeline.py` puts them together, `elementwise.py` has the tile loop, and
`store.py` and `scale_and_store.py` store the result.
"""
