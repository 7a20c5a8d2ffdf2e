"""What evidence is verified with, made from the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dstack.attestation.certificates import der_of
from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.attestation.verification_policy import VerificationPolicy, accept_statuses
from dstack.errors import ConfigError
from dstack.keys.pem import load_certificate
from dstack.transport.collateral_store import opened_collateral
from kms.acpi_tables import FROM_LOG, AcpiTables, GiveTables, MeasureImage, refuse_unseen_tables
from kms.config import Core, Image
from kms.evidence import EvidenceVerifier
from kms.image_cache import ImageCache
from kms.image_download import ArchiveSource, DownloadLimits
from kms.image_measurements import ImageMeasurements

_FILE_LIMIT = 64 << 10


@contextmanager
def opened_verifier(core: Core, images: ImageCache) -> Iterator[EvidenceVerifier]:
    """The verifier that the settings describe; what it holds open is closed at the end.

    Raises:
        ConfigError: The root of trust cannot be read.
    """
    roots = _roots(core.attestation.root_ca.tdx)
    policy = VerificationPolicy(
        relaxations=accept_statuses(core.accepted_tcb_statuses, core.accepted_tcb_statuses_until),
        min_evaluation_number=core.attestation.min_evaluation_number,
    )
    image, acpi = _reference(core.image, images)
    with opened_collateral(core.collateral_dir, urls=core.pccs, roots=roots, clock=_now) as collateral:
        yield EvidenceVerifier(roots, policy, collateral, _now, acpi, image=image)


def _reference(settings: Image, images: ImageCache) -> tuple[MeasureImage, GiveTables | None]:
    """How images are measured whose machines carry no measurement document, and where all ACPI tables come from."""
    if not settings.acpi_tables:
        return refuse_unseen_tables, refuse_unseen_tables
    measure = ImageMeasurements(images).digests
    return measure, None if settings.acpi_tables == FROM_LOG else AcpiTables(settings.acpi_tables, images).digests


def make_image_cache(settings: Image) -> ImageCache:
    """The images that the settings describe."""
    limits = DownloadLimits(time=settings.download_timeout)
    source = None if settings.download_url is None else ArchiveSource(settings.download_url, limits)
    return ImageCache(settings.cache_dir, source)


def _now() -> datetime:
    return datetime.now(UTC)


def _roots(path: Path | None) -> TrustedRoots:
    if path is None:
        return INTEL_ROOTS
    try:
        with path.open("rb") as stream:
            raw = stream.read(_FILE_LIMIT)
    except OSError as exc:
        raise ConfigError(f"core.attestation.root_ca.tdx: {path}: {exc.strerror or exc}") from exc
    return TrustedRoots((simulated_root(der_of(load_certificate(raw)) if raw.startswith(b"-----") else raw),))
