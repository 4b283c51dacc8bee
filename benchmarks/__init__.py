"""GRU implementations side by side; README.md in this folder says how a figure is made."""
