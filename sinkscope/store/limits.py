"""What a run file can hold. Imports nothing, so that the command line can refuse at once what does not fit."""

LARGEST_INTEGER = 2**63 - 1
