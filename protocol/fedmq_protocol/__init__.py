"""What crosses the broker: topics, messages, tasks, transfers, and the connection that carries them."""
