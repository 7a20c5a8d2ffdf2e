"""Is this evidence genuine, and what does it say? Pure: no network, no clock, no files."""
