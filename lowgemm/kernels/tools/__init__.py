"""Tools for whoever writes a kernel: is it right, what did LLVM make of it, how fast is it, how fast could it
be.
"""
