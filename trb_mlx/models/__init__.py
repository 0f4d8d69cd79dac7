"""Loading teacher and student, LoRA, and the checks that make two models a pair."""
