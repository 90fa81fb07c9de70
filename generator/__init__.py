"""Rollout side: vLLM engine, verifier children, the worker that leases prompts and sends trajectories."""
