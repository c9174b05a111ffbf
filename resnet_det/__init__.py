"""Residual networks exactly as in the paper, and detectors on them."""
