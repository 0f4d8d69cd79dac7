"""Held-out evaluation: accuracy, distances to the teacher, intervals, and what keeps them."""
