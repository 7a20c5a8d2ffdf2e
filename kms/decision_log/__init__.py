"""The decisions of a KMS in a database: signed, each bound to the one before, so that a missing one is noticed.

In: lines as `kms.decisions` writes them. Out: entries that anybody who knows the KMS's k256 public key can verify.
SQLite keeps the log of one KMS, PostgreSQL that of several that share their root keys.
"""
