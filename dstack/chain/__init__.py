"""The contracts, asked and written to over JSON-RPC.

Reading: `ChainClient` (one endpoint) and `Endpoints` (several that must agree) fix one block and ask in its state;
`KmsAuthReader` makes a `Decision` of the answer. What could not be asked is `ChainUnavailableError`, never yes or no.
Writing: every transaction is simulated first, and a refusal of a contract comes back as a sentence.
"""
