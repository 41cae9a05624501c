"""The command line, and one file per job on Ray Data."""
