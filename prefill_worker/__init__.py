"""The prefill worker: reads prompts and exports their KV blocks as they fill."""
