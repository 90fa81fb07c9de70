"""`vcppo samples`: the responses of a run, read, filtered and shown."""
