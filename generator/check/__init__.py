"""The generator's part of `vcppo check`: data, tokenizer, prompts, verifier, engine."""
