"""The command `fedmq bridge`: its settings and programs, and what the bridge refuses to know: broker and terminal."""
