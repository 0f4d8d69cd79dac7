"""Pure functions on arrays: no models, no files."""
