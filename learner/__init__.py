"""The learner: Algorithm 1 of the paper on DeepSpeed engines."""
