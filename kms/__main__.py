"""`python -m kms -c kms.toml`: the KMS; `program` is what it runs."""

import sys

if __name__ == "__main__":
    # Here, because the worker processes that verify quotes import this module, and need nothing of the service.
    from kms.program import main

    sys.exit(main())
