"""What a model's folder states, and the tokenizer that its tokenizer.json says."""
