"""A whole federation in one process and in virtual time: the real coordinator and gateways, and everything around them
made up from a seed. `docs/simulation.md` says what is made up and what is real."""
