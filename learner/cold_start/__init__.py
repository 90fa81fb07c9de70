"""Before RL: supervised fine-tuning and reward models."""
