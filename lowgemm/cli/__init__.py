"""The subcommands of `python -m lowgemm`, one a file."""
