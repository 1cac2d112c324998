"""How long a test waits for a program before it says that it hangs."""

#: Seconds. Far more than any test needs on the slowest machine: a time limit ends what hangs, it is no judge
#: of speed.
PATIENCE = 3600
