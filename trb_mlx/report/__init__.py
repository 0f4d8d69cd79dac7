"""One page of a run or of several over each other: its figures, tables, and PNGs beside it."""
