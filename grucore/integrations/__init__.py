"""Integrations with other libraries, one file each; importing one requires the library."""
