"""The command line of run.py: start and end of a run, errors for users, --help, secrets."""
