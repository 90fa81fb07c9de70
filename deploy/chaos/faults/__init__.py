"""What chaos does to a run, by theme: each function strikes one kind of fault; None: there was nothing to hit."""
