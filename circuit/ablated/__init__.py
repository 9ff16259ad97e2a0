"""The model with nodes held at given values: means, the compacted forward pass, calibration."""
