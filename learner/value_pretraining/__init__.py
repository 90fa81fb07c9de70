"""The critic learns the returns of the frozen policy, until a gate says that it does."""
