"""The run's critic as the config describes it, and whether it reads what the policy writes."""
