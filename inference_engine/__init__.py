"""One model on one device: steps over a paged pool of KV blocks. Knows nothing of other workers."""
