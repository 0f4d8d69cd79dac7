"""A run's folder on disk: where things lie, who may use it, and its checkpoints."""
