"""How lowgemm talks to Numba: the target, compiled routines and their cache on disk, memory behind addresses."""
