"""Advice: which method, sizes and precision for a data set and a budget, and why."""
