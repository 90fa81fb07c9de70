"""Log lines of all processes: read, shown, followed."""
