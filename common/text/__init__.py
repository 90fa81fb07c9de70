"""Text: one line of anything, YAML as one writes it, questions compared."""
