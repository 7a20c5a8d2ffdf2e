"""The replicator: hands the secure file of an app from an old node to a new one, when the chain permits both.

Three rounds: the new node publishes a *request* (a fresh key, quoted), the old node *onboards* it (seals the secure
file to that key), the new node *receives* the answer. Each side verifies and appraises the other's evidence and asks
the chain about it. Both keep the receipt.
"""
