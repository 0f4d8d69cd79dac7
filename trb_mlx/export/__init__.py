"""What a run leaves on disk: adapters in mlx-lm's format and checkpoints to resume from."""
