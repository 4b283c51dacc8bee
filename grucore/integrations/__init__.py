"""Other libraries, one file each; importing one needs the library."""
