"""`fedmq ca`: who belongs to a federation, and how gateways come by their keys.

- `certificates`  X.509 as values: keys, certificates, requests and lists of revoked ones; no file, no clock
- `records`       what has been issued, and tokens, as lines of JSON; who is in force
- `folder`        files that are written whole or not at all, and one program at a time
- `authority`     what the commands do to the folder of a CA
- `tokens`        the text of a one-time token
- `exchange`      what gateway and server say to each other
- `serving`       enrolment and renewal over HTTPS
- `enrolment`     the same from the gateway's side
- `command`       the words of the command line
"""
