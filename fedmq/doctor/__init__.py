"""`fedmq doctor`: whether what a program of a federation rests on is sound, before and while it runs.

`findings` is what a check comes to; `files`, `certificates`, `identity`, `clock` and `network` are checks of one
concern each; `roles` says which of them a gateway, a coordinator and a broker need, and what may be tried.
"""
