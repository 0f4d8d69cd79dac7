"""What is matched, the one compiled step, and the loop that keeps time."""
