"""Output pipeline: stages.py (what), pipeline.py (how it is put together), routines.py (what runs)."""
