"""What turns a description of a tile into a microkernel. Start with `kernel.py`, the contract."""
