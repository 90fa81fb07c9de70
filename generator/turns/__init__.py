"""Rollouts of several turns: environments in child processes, and the loop between the policy and them."""
