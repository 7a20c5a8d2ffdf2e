"""NOT PRODUCTION: a TDX platform made of software, under its own root of trust.

Its quotes are real quotes in every byte but one fact: no Intel CPU stands behind them. They verify only where its root
has been configured as trusted, and nothing that a deployment runs imports this package.
"""
