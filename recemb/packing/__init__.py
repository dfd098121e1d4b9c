"""Packing: tables that are trained made smaller, quantized, exported and loaded."""
