"""Signed releases: made on a workstation, served by any HTTPS server, pulled by gateways that nobody can reach.

`index` is what is signed and how it is read, `making` turns wheelhouses into a folder to serve, `fetching` is the way
to that folder, `installing` is the folder of releases on a machine, and `pulling` is the story of one upgrade.
"""
