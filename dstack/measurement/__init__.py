"""What a machine measures, from what it is made of.

In: an app-compose.json, an OS image's measurement document, a VM's shape, an event log; all as bytes.
Out: compose hash and app id, RTMR3, the reference values of MRTD and RTMR0 to RTMR2, and digests that name instance,
machine and system. Nothing here knows who signed anything; that is `dstack.attestation`.

1. A register is 48 zero bytes, then SHA-384(register || digest) for each event, in order: `replay`.
2. A runtime event extends SHA-384(type || ":" || name || ":" || payload) into RTMR3, always computed and never read
   from a log: `runtime_event_digest`, `replay_event_log`.
3. The compose hash is the SHA-256 of the bytes of app-compose.json; its first 20 bytes are the default app id:
   `compose_hash`, `default_app_id`.
4. RTMR3 follows from compose hash, app id, instance id, key provider, image and release: `boot_events`,
   `predict_rtmr3`. It is one constant per app only with `no_instance_id`.
5. The os image hash is the SHA-256 of the image's sha256sum.txt, which lists its measurement document; from that and
   the VM's shape follow MRTD, RTMR0, RTMR1 and RTMR2: `reference_values`. The three ACPI digests come from the
   machine's own log, so the content of the ACPI tables is not verified.

Sources: the dstack formats for guests and for measurements; TDX module and TCG rules for registers and events.
"""
