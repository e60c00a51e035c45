"""Where runs start, when not in this process."""
