"""Ratios against peers and the price of the parts, each measured in one run. No test asserts a time."""
