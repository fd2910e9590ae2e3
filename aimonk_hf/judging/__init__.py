"""Metrics, evidence, thresholds and calibration of a model; probe and audit of the data; plots and tables."""
