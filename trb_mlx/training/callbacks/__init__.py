"""What listens to a run: progress, writers, tracking services and checkpoints."""
