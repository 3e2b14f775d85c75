"""Bytes from sensors to readings. `frames` is the native stream, `readings` what its frames mean in time;
`downloads` sends models the other way, and `scores` reads what they find."""
