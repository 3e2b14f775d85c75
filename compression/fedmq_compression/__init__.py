"""A model delta to bytes and back. `fedmq_compression.pipeline` is the door; the other modules stand behind it."""
