"""Adapters in memory and in the formats of mlx-lm and PEFT."""
