"""Metrics, thresholds, calibration, resampling, the report and its plots."""
