"""Compares GRU implementations; README.md in this folder describes how a figure is made."""
