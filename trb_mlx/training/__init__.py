"""The training of a run: what is matched, the one step, and when things happen."""
