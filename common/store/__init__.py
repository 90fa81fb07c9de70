"""Everything of a run that must survive, in Redis, and the accounts of it."""
