"""What a person reads of a run: evaluation, metrics files, progress and the summary."""
