"""How often each interval covers what it claims to, and each test cries wolf (`make coverage`, docs/coverage.md).

Each module gives `rows(repeats, rng)`: dictionaries with `what` (the interval or test), `kind` (`interval` or `test`),
`population`, `n` (seeds), `rate` (share of simulations that covered the truth, or that rejected a true null) and `nominal`.
"""
