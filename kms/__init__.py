"""The key management service: holds root keys and releases app keys to whom the chain permits.

`onboard` makes the root keys once. `release` answers requests: evidence is verified, appraised, judged by the
contracts at one finalized block, and only a Granted decision leads to keys.
"""
