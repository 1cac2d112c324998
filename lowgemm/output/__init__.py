"""Output pipeline: stages/ (what), pipeline.py (how they are put together), elementwise.py (the tile loop), store.py and vector.py (the end)."""
