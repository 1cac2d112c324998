"""How lowgemm talks to Numba: the target, compiled routines, their cache on disk and its stamp, memory behind
addresses.
"""
