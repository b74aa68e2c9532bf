"""Capture: calibration samples through hooks into statistics, sampled hidden states and attention in a run file."""
