"""Output pipeline: stages/ (what), pipeline.py (how they are put together), elementwise.py (the tile loop),
store.py and scale_and_store.py (the end).
"""
