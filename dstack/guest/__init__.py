"""What runs inside a CVM: it measures how the machine was started, gets its keys, and answers the app's questions.

Order of trust at boot: measure the app and its identity, show that to a KMS, get keys or none, measure who gave them.
Everything that comes from the host is transport only; what matters of it is measured or verified.
"""
