"""What a run takes before it is begun: memory of each phase, time of a step, what to lower."""
