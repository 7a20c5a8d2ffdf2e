"""dstack in Python: which software may hold which keys, decided by smart contract."""
