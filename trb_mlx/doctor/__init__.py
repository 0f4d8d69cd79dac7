"""The machine examined: what it is, and checks of the mathematics on the device that trains."""
