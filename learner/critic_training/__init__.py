"""More passes of the critic over what it has seen, while the learner waits for the next batch."""
