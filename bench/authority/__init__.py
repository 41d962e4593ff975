"""The certificate service under the start of a whole fleet, and a day of renewals: `python -m bench.authority`."""
