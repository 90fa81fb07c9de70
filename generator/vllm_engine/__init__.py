"""vLLM: the engine, its weights, what it refuses."""
