"""The contracts, asked and written to over JSON-RPC.

Reading: `ChainClient` fixes one block and asks in its state; `KmsAuthReader` makes a `Decision` of the answer. What
could not be asked is `ChainUnavailableError`, never yes or no. Writing: every transaction is simulated first, and a
refusal of a contract comes back as a sentence.
"""
