"""Damaged files: how they are made, and what reads them. scripts/fuzz.py runs the full test."""
