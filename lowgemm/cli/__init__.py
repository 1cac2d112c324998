"""The subcommands of `python -m lowgemm`, one per file."""
