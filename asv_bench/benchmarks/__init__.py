"""The suite, one subject a module; `measure` is the ruler and `common` the operands."""
