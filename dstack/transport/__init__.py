"""Sockets: HTTP, TLS and the guest agent. Knows how bytes travel, never what they permit.

A TLS certificate that a peer presents is handed on as bytes. Nothing here takes it for an identity: whoever needs one
reads the evidence inside it, verifies, appraises and asks the chain.
"""
