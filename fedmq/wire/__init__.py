"""`fedmq wire`: shows what crosses the broker, field by field, so that anyone can see what leaves a gateway.

`fields` says what each field tells, `reading` makes fields of bytes, `tally` adds them up, `showing` makes text of
them, and `program` connects and waits.
"""
