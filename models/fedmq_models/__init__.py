"""Models beyond training: what they become for machines that run no Python."""
