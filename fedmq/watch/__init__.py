"""`fedmq machine`, `fedmq watch`, `fedmq alert` and `fedmq replay`: machines that are watched beside a gateway."""
