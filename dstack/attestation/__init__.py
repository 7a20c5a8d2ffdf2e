"""Is this evidence genuine, and what does it say? Pure: no network, no clock, no files.

In: bytes, collateral, trusted roots, a time, a policy. Out, one type after the other, none without the one before:

    bytes --parse_quote--> Quote --verify_quote--> VerifiedQuote --appraise--> Appraisal

`verify_quote` says who signed, `appraise` says whether what is measured is what was expected. Both raise at the first
numbered step that fails; the numbers are those of `docs/verification-steps.md`.
"""
