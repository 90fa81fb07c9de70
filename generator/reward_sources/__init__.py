"""Rewards that come from elsewhere: an HTTP service, or a judge behind an OpenAI-compatible endpoint."""
