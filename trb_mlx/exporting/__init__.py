"""Exports of a finished run in other tools' formats."""
