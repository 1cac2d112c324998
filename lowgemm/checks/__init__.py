"""Arguments: what a user may hand in, and the exception that names what does not fit."""
