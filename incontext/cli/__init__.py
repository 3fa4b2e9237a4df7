"""The command line: parsing and files only."""
