"""Other people's ways to do the same, each in a process of its own."""
